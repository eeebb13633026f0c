"""The obvious implementation: `transformers.Trainer` around a peft model, as their documentations show it.

Rows go through `datasets.map`, the model is in its train mode (dropout on), batches are drawn at random and
padded by `DataCollatorWithPadding`, or all rows are padded to one length. What is slow about it is left as
it is, and nothing is made slower: AdamW is the fused one, evaluation takes batches of 64, nothing is saved,
and `datasets` keeps its own caches on disk.

As a script it is one trial in a process of its own, which is how Ray Tune runs trials by default
(`TuneConfig(reuse_actors=False)`):

    python experiments/lib/obvious.py trial.json result.json

Hybrids that peft has no words for take our modules (`autopeft.hybrid.attach`), trained by the Trainer. They
are cheaper than hand-written ones with their own bookkeeping, and the import of autopeft is left out of the
CPU seconds, so this favours the obvious side.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, disable_progress_bars, load_dataset
from peft import IA3Config, LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_linear_schedule_with_warmup,
    set_seed,
)
from transformers.utils import logging as transformers_logging

__all__ = [
    "MODULES",
    "InjectedOutput",
    "StepClock",
    "Training",
    "Trial",
    "bare_loop",
    "inject_adapters",
    "load_classifier",
    "lora",
    "make_trainer",
    "quiet",
    "run",
    "say_in_peft",
    "tokenised",
]

# By family: where its layers are, and sites in the words of a layer's module tree.
MODULES = {
    "bert": (
        "bert.encoder.layer",
        {
            "q": "attention.self.query",
            "k": "attention.self.key",
            "v": "attention.self.value",
            "o": "attention.output.dense",
            "up": "intermediate.dense",
            "down": "output.dense",
        },
    ),
    "llama": (
        "model.layers",
        {
            **{site: f"self_attn.{site}_proj" for site in ("q", "k", "v", "o")},
            "gate_proj": "mlp.gate_proj",
            "up": "mlp.up_proj",
            "down": "mlp.down_proj",
        },
    ),
}


def quiet() -> None:
    """No progress bars, no load reports, no deprecation warnings of peft about transformers."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()


# Data and models
# ---------------------------------------------------------------------------------------------------------


def tokenised(
    rows: Dataset | DatasetDict, tokenizer: Any, padding: int | None, max_length: int
) -> Dataset | DatasetDict:
    """Rows with `text` and `label` as tokens and `label`; all of length `padding`, or ragged for `None`."""
    fixed = padding is not None

    def tokenise(batch: dict[str, list[Any]]) -> Any:
        return tokenizer(
            batch["text"],
            truncation=True,
            max_length=padding if fixed else max_length,
            padding="max_length" if fixed else False,
        )

    return rows.map(tokenise, batched=True, remove_columns=["text"])


def load_classifier(folder: str, labels: int) -> Any:
    """The pretrained model with a new classification head."""
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels)


def lora(
    model: Any,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    layers: Sequence[int] | None = None,
    dropout: float = 0.0,
    dora: bool = False,
    task: TaskType = TaskType.SEQ_CLS,
) -> Any:
    """peft's LoRA or DoRA on the modules whose names end in one of `targets`, in `layers` or in all."""
    config = LoraConfig(
        task_type=task,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        layers_to_transform=None if layers is None else list(layers),
        use_dora=dora,
    )
    return get_peft_model(model, config)


def say_in_peft(model: Any, words: Mapping[str, Any], task: TaskType = TaskType.SEQ_CLS) -> Any:
    """A peft model from the `kind` and the figures that `draws.peft_words` found."""
    rest = {key: value for key, value in words.items() if key != "kind"}
    if words["kind"] == "lora":
        return lora(model, task=task, **rest)
    if words["kind"] == "ia3":
        return get_peft_model(model, IA3Config(task_type=task, **rest))
    return get_peft_model(model, PromptTuningConfig(task_type=task, **rest))


class InjectedOutput(nn.Module):
    """BERT's FFN output with a Pfeiffer adapter in it: LN(z + f(LN(z + h)) + h), f a bottleneck with ReLU.

    z is the FFN's output before the residual h. Written by hand, as an adapter is without any library.
    """

    def __init__(self, output: Any, bottleneck: int) -> None:
        super().__init__()
        width = output.dense.out_features
        self.output = output
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """FFN activations (B, L, d_ff) and residual (B, L, d) to the layer's output (B, L, d)."""
        z = self.output.dropout(self.output.dense(hidden_states))
        norm = self.output.LayerNorm
        adapted = z + self.up(F.relu(self.down(norm(z + input_tensor))))
        out: Tensor = norm(adapted + input_tensor)
        return out


def inject_adapters(model: Any, layers: Iterable[int], bottleneck: int) -> Any:
    """Put an adapter into each of a BERT classifier's `layers`; all but adapters and head is frozen."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier."))
    for index in layers:
        layer = model.bert.encoder.layer[index]
        layer.output = InjectedOutput(layer.output, bottleneck)
    return model


# Training
# ---------------------------------------------------------------------------------------------------------


class StepClock(TrainerCallback):
    """CPU seconds of this process at the end of each step."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ticks.append(time.process_time())


@dataclass(frozen=True)
class Training:
    """How a model is trained, in the Trainer's words.

    Attributes:
        warmup: share of the steps.
        sampling: `random`, or `group_by_length` for the Trainer's own length buckets.
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.06
    schedule: str = "linear"
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    seed: int = 0
    sampling: str = "random"


def make_trainer(
    model: Any,
    rows: Dataset,
    tokenizer: Any,
    training: Training,
    folder: str | Path,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    collator: Any = None,
    **options: Any,
) -> Trainer:
    """A Trainer on the CPU that saves and reports nothing.

    Args:
        optimizer: in place of the Trainer's own AdamW.
        collator: makes batches; by default a classifier's, whose accuracy is measured.
        options: of `TrainingArguments`, in place of what stands here.
    """
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": training.steps,
        "per_device_train_batch_size": training.batch_size,
        "per_device_eval_batch_size": 64,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.schedule,
        "warmup_steps": training.warmup,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "train_sampling_strategy": training.sampling,
        "seed": training.seed,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 50,
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**{**given, **options}),
        train_dataset=rows,
        data_collator=collator or DataCollatorWithPadding(tokenizer),
        compute_metrics=_accuracy if collator is None else None,
        callbacks=list(callbacks),
        optimizers=(optimizer, None),
    )
    # Losses are logged all the same; they need not be printed.
    trainer.pop_callback(_printer())
    return trainer


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def _accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def bare_loop(
    model: Any, rows: Dataset, tokenizer: Any, training: Training, on_step: Callable[[float], None]
) -> None:
    """The same training without the Trainer; `on_step(loss)` after each step."""
    loader = DataLoader(
        rows.with_format(None),  # type: ignore[arg-type]
        batch_size=training.batch_size,
        shuffle=True,
        collate_fn=DataCollatorWithPadding(tokenizer),
        generator=torch.Generator().manual_seed(training.seed),
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
    )
    warmup = int(training.warmup * training.steps)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, training.steps)
    model.train()
    for _, batch in zip(range(training.steps), _endless(loader), strict=False):
        loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        on_step(float(loss.detach()))


def _endless(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


# One trial in a process of its own
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One trial, as it is handed over in a file.

    Attributes:
        model: the model's folder.
        train, select: JSON-lines files with `text` and `label`.
        cache: folder for what `datasets` caches.
        recipe: the recipe as a dict, for `attach`.
        peft: the recipe in peft's words, or `None` where peft has none for it.
        training: how to train; its learning rate is that of the modules.
        head_learning_rate: learning rate of the head in the peft case.
        padding: length that all rows are padded to; `None` pads each batch.
    """

    model: str
    labels: int
    train: str
    select: str
    cache: str
    recipe: Mapping[str, Any]
    peft: Mapping[str, Any] | None
    training: Training
    head_learning_rate: float
    padding: int | None = None
    max_length: int = 128

    @classmethod
    def read(cls, path: Path) -> Trial:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**fields, "training": Training(**fields["training"])})


@dataclass
class Built:
    """A model ready for the Trainer.

    `import_seconds` is CPU time that only the comparison costs: the import of autopeft.
    """

    model: Any
    optimizer: torch.optim.Optimizer
    callbacks: list[TrainerCallback] = field(default_factory=list)
    import_seconds: float = 0.0


def run(trial: Trial) -> dict[str, Any]:
    """Load, tokenise, attach, train, evaluate; returns the score and what it was reached with."""
    quiet()
    set_seed(trial.training.seed)
    tokenizer = AutoTokenizer.from_pretrained(trial.model)
    files = {"train": trial.train, "select": trial.select}
    rows = tokenised(
        load_dataset("json", data_files=files, cache_dir=trial.cache),
        tokenizer,
        trial.padding,
        trial.max_length,
    )
    model = load_classifier(trial.model, trial.labels)
    built = _with_peft(model, trial) if trial.peft is not None else _with_ours(model, trial, rows, tokenizer)
    with tempfile.TemporaryDirectory(prefix="obvious-") as folder:
        trainer = make_trainer(
            built.model,
            rows["train"],
            tokenizer,
            trial.training,
            folder,
            optimizer=built.optimizer,
            callbacks=built.callbacks,
        )
        trained = trainer.train()
        scores = trainer.evaluate(rows["select"])
    return {
        "score": scores["eval_accuracy"],
        "train_loss": trained.training_loss,
        "trainable": sum(p.numel() for p in built.model.parameters() if p.requires_grad),
        "import_seconds": built.import_seconds,
    }


def _with_peft(model: Any, trial: Trial) -> Built:
    assert trial.peft is not None
    wrapped = say_in_peft(model, trial.peft)
    named = [(name, p) for name, p in wrapped.named_parameters() if p.requires_grad]
    head = [p for name, p in named if "modules_to_save" in name]
    modules = [p for name, p in named if "modules_to_save" not in name]
    groups = [
        {"params": modules, "lr": trial.training.learning_rate},
        {"params": head, "lr": trial.head_learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=trial.training.weight_decay, fused=True)
    return Built(wrapped, optimizer)


def _with_ours(model: Any, trial: Trial, rows: Any, tokenizer: Any) -> Built:
    start = time.process_time()
    from autopeft.hybrid import attach
    from autopeft.recipe import Recipe

    recipe = Recipe.from_dict(dict(trial.recipe))  # imports every method
    spent = time.process_time() - start
    hybrid = attach(model, recipe, seed=trial.training.seed)
    if hybrid.needs_prepare:
        hybrid.prepare(_single_rows(rows["train"], tokenizer, trial.training.seed), _Loss(model))
    return Built(hybrid.model, hybrid.optimizer(fused=True), [hybrid.callback()], spent)


class _Loss:
    """The loss of a batch and its logits, for methods that look at gradients before training."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        return logits

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.logits(batch), batch["labels"])


def _single_rows(rows: Dataset, tokenizer: Any, seed: int) -> Iterator[dict[str, Tensor]]:
    collate = DataCollatorWithPadding(tokenizer)
    for row in np.random.default_rng(seed).permutation(len(rows)):
        yield dict(collate([rows[int(row)]]))


def main() -> None:
    source, target = (Path(argument) for argument in sys.argv[1:3])
    torch.set_num_threads(1)
    target.write_text(json.dumps(run(Trial.read(source))), encoding="utf-8")


if __name__ == "__main__":
    main()
