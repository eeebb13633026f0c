"""The obvious implementation for a language model, beside that for a classifier (`obvious`).

Conversations of one question go through the tokenizer's chat template and `datasets.map`. Labels are -100
outside of the answer, and `DataCollatorForSeq2Seq` pads each batch, as transformers and peft document it.
What is reported is the likelihood of an answer's token: exp of the negative loss that the Trainer finds.

    python experiments/lib/obvious_language.py trial.json result.json
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict, load_dataset
from peft import TaskType
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, set_seed

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.obvious import Trial, make_trainer, quiet, say_in_peft

__all__ = ["run", "tokenised"]

_IGNORED = -100
_ROWS_AT_ONCE = 16  # in evaluation: each token has a logit for each word


def tokenised(rows: DatasetDict, tokenizer: Any, max_length: int) -> DatasetDict:
    """Rows with `messages` as tokens and labels, ragged. Nothing is learnt behind the end of an answer: a
    template may write a line break there."""

    def tokenise(row: dict[str, Any]) -> dict[str, list[int]]:
        write = partial(tokenizer.apply_chat_template, tokenize=False)
        asked, whole = write(row["messages"][:-1], add_generation_prompt=True), write(row["messages"])
        prompt, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (asked, whole))
        if (end := tokenizer.eos_token_id) in ids[len(prompt) :]:
            ids = ids[: len(ids) - ids[::-1].index(end)]
        ids = ids[:max_length]
        labels = [_IGNORED] * len(prompt) + ids[len(prompt) :]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels[:max_length]}

    return rows.map(tokenise, remove_columns=["messages"])


def run(trial: Trial) -> dict[str, Any]:
    """Load, tokenise, attach, train, evaluate; returns the score and what it was reached with.

    Raises:
        ValueError: peft has no words for the recipe.
    """
    if trial.peft is None:
        raise ValueError("Only recipes that peft has words for are compared on language models.")
    quiet()
    set_seed(trial.training.seed)
    tokenizer = AutoTokenizer.from_pretrained(trial.model)
    files = {"train": trial.train, "select": trial.select}
    rows = tokenised(
        load_dataset("json", data_files=files, cache_dir=trial.cache), tokenizer, trial.max_length
    )
    base = AutoModelForCausalLM.from_pretrained(trial.model, dtype=torch.float32)
    model = say_in_peft(base, trial.peft, TaskType.CAUSAL_LM)
    parameters = [p for p in model.parameters() if p.requires_grad]
    training = trial.training
    optimizer = torch.optim.AdamW(
        parameters, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
    )
    with tempfile.TemporaryDirectory(prefix="obvious-") as folder:
        trainer = make_trainer(
            model,
            rows["train"],
            tokenizer,
            training,
            folder,
            optimizer=optimizer,
            collator=DataCollatorForSeq2Seq(tokenizer),
            per_device_eval_batch_size=_ROWS_AT_ONCE,
            prediction_loss_only=True,
        )
        trained = trainer.train()
        scores = trainer.evaluate(rows["select"])
    return {
        "score": math.exp(-scores["eval_loss"]),
        "train_loss": trained.training_loss,
        "trainable": sum(p.numel() for p in parameters),
        "import_seconds": 0.0,
    }


def main() -> None:
    source, target = (Path(argument) for argument in sys.argv[1:3])
    torch.set_num_threads(1)
    target.write_text(json.dumps(run(Trial.read(source))), encoding="utf-8")


if __name__ == "__main__":
    main()
