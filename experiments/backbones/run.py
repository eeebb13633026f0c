"""A small T5, pretrained from nothing to mend texts: a backbone for tasks of sources and targets.

    python experiments/backbones/run.py --out t5-tiny                # under an hour of one core
    python experiments/backbones/run.py --out t5-try --steps 4 --texts 3000 --batch-size 8
    python experiments/backbones/run.py --tables

It reads the train sentences of WikiText-2 and those of Tatoeba in English and Spanish, as the packaged tasks
`wikitext-2` and `tatoeba-en-es` split them for seed 0: with that seed, what they are tested on is in none of
it. Tokens are 8,000 pieces of a unigram model of the same sentences. The folder is what `--model` takes; it
lies outside of the repository. A run that was stopped goes on where it was, by the same command.

Texts are learnt one by one: the whole text from the text with spans taken out. T5's own objective on packed
blocks, by AdamW, did not get below the loss of single tokens' frequencies in 450 steps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.measuring import environment, note, read_json, show, write_json
from resumable import KEEP_EVERY, Batch, Training
from spans import Rows, Tokens, corrupted, places_of

from autopeft.tasks import SplitName, load_task

FILE = Path(__file__).parent / "results" / "pretraining.json"
STEPS, BATCH = 4_500, 32
SHORTEST, LONGEST = 4, 48  # tokens of a text
RATE = 1e-2
PIECES, SENTINELS = 8_000, 100
HELD_OUT = 2_000
PAD, END, UNKNOWN = 0, 1, 2
CARD = """# A T5 of {millions:.1f} million parameters, for experiments

Made by `experiments/backbones` of AutoPEFT: trained from nothing for {steps:,} steps of {batch} texts of up
to {length} tokens, to write a whole text that it reads with spans taken out. It is none of Google's T5
checkpoints and knows a small part of theirs.

- Data: train sentences of WikiText-2 (Wikipedia, CC BY-SA 3.0; Merity et al. 2016) and of Tatoeba, English
  and Spanish (CC BY 2.0 FR; tatoeba.org, manythings.org/anki), by the splits of seed 0.
- Loss of a target token on sentences of *select*: {loss:.3f}.
- Licence of the weights: CC BY-SA 3.0, as that of the texts.
"""


def sentences(split: SplitName, most: int | None) -> list[str]:
    """The texts of a split of both tasks; of Tatoeba both languages, each text once."""
    wiki, pairs = (load_task(name, notify=note).splits[split] for name in ("wikitext-2", "tatoeba-en-es"))
    lines = [line for text in wiki.texts for line in text.split("\n")]
    return list(dict.fromkeys([*lines, *pairs.texts, *map(str, pairs.labels)]))[:most]


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """A unigram tokenizer with T5's special tokens, which ends each text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["<pad>", "</s>", "<unk>"]
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    options = {"special_tokens": special, "unk_token": "<unk>", "show_progress": False}
    inner.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=PIECES, **options))
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", END)]
    )
    # The sentinels lie behind the pieces, as T5's do.
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512,
        additional_special_tokens=[f"<extra_id_{i}>" for i in range(SENTINELS)],
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def model_of(vocabulary: int) -> T5ForConditionalGeneration:
    """4 + 4 layers of 256."""
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocabulary, d_model=256, d_kv=64, d_ff=1_024, num_layers=4, num_heads=4,
            dropout_rate=0.0, tie_word_embeddings=True, decoder_start_token_id=PAD, pad_token_id=PAD,
            eos_token_id=END,
        )
    )  # fmt: skip


def kept_of(rows: Rows) -> list[Tokens]:
    """The texts that are learnt."""
    return [np.asarray(row, dtype=np.int64) for row in rows if SHORTEST <= len(row) <= LONGEST]


def begun(out: Path, model: T5ForConditionalGeneration) -> Training:
    """The training of a model, with the optimizer and the rate of T5, which scale with the weights."""
    return Training(out, model, torch.optim.Adafactor(model.parameters(), lr=RATE))


def batch_of(texts: Sequence[Tokens], sentinels: list[int], rng: np.random.Generator) -> Batch:
    """Sources, their mask and labels; -100 behind the targets."""
    pairs = [corrupted(text, sentinels, END, rng) for text in texts]
    sources, targets = (pad_sequence([torch.tensor(p[side]) for p in pairs], True, -100) for side in (0, 1))
    mask = (sources >= 0).long()
    return {"input_ids": sources.clamp_min(PAD), "attention_mask": mask, "labels": targets}


def batches(rows: Rows, sentinels: list[int], start: int, size: int) -> Iterator[Batch]:
    """Batches from step `start` on, the same for a step whenever it is asked for."""
    step, epoch, texts = 0, 0, kept_of(rows)
    lengths = np.asarray([len(text) for text in texts])
    while True:
        for places in places_of(lengths, size, np.random.default_rng((0, epoch))):
            if step >= start:
                own = [texts[int(place)] for place in places]
                yield batch_of(own, sentinels, np.random.default_rng((1, step)))
            step += 1
        epoch += 1
        if not step:
            raise SystemExit(f"{len(texts)} texts are fewer than a batch of {size}.")


@torch.no_grad()
def held_out_loss(model: T5ForConditionalGeneration, rows: Rows, sentinels: list[int]) -> float:
    """Mean loss of a target token on other texts."""
    texts, rng, total, tokens = kept_of(rows)[:HELD_OUT], np.random.default_rng(3), 0.0, 0
    model.eval()
    for first in range(0, len(texts), BATCH):
        batch = batch_of(texts[first : first + BATCH], sentinels, rng)
        count = int((batch["labels"] != -100).sum())
        total += float(model(**batch).loss) * count
        tokens += count
    return total / max(1, tokens)


def tokens_in(out: Path, most: int | None) -> tuple[PreTrainedTokenizerFast, Rows, Rows]:
    """The tokenizer, made once, and the tokens of *train* and of some of *select*."""
    texts, others = sentences("train", most), sentences("select", most)[-HELD_OUT * 2 :]
    if not (out / "tokenizer.json").exists():
        note(f"{len(texts):,} texts; finding {PIECES:,} pieces")
        tokenizer_of(texts).save_pretrained(out)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    read = {"add_special_tokens": False, "verbose": False}
    return tokenizer, tokenizer(texts, **read)["input_ids"], tokenizer(others, **read)["input_ids"]


def pretrain(out: Path, steps: int, size: int, most: int | None) -> dict[str, Any]:
    """Train, or go on; the folder holds the whole model at the end."""
    tokenizer, rows, others = tokens_in(out, most)
    sentinels = [int(tokenizer.convert_tokens_to_ids(f"<extra_id_{i}>")) for i in range(SENTINELS)]
    training = begun(out, model_of(len(tokenizer)))
    coming = batches(rows, sentinels, len(training.losses), size)
    while len(training.losses) < steps:
        training.step(next(coming), steps)
    model, losses = training.model, training.losses
    loss = held_out_loss(model, others, sentinels)
    model.save_pretrained(out)
    count = sum(p.numel() for p in model.parameters())
    told = {"millions": count / 1e6, "steps": steps, "batch": size, "length": LONGEST, "loss": loss}
    (out / "README.md").write_text(CARD.format(**told))
    training.state.unlink(missing_ok=True)
    return {
        "environment": environment(), "threads": torch.get_num_threads(), "steps": steps, "batch": size,
        "texts": len(rows), "tokens": sum(map(len, rows)), "parameters": count,
        "minutes": round(training.seconds / 60, 1),
        "loss": {"first": losses[0], "last": float(np.mean(losses[-KEEP_EVERY:])), "select": loss},
    }  # fmt: skip


def tables() -> None:
    found = read_json(FILE)
    rows = [[f"loss, {name}", f"{value:.3f}"] for name, value in found["loss"].items()]
    rows += [[n, f"{found[n]:,}"] for n in ("steps", "batch", "texts", "tokens", "parameters", "minutes")]
    show("A small T5, pretrained", ["", ""], rows)


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--out", type=Path, help="folder of the model; it lies outside of the repository")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument("--texts", type=int, help="read so many texts alone, for a try")
    parser.add_argument("--tables", action="store_true", help="print what was recorded")
    options = parser.parse_args()
    if not options.tables:
        if options.out is None:
            parser.error("name the folder of the model with --out")
        options.out.mkdir(parents=True, exist_ok=True)
        found = pretrain(options.out, options.steps, options.batch_size, options.texts)
        if (options.steps, options.batch_size, options.texts) != (STEPS, BATCH, None):
            note(f"A try is not recorded; {FILE} tells of the whole training.")
            return
        write_json(FILE, found)
    tables()


if __name__ == "__main__":
    main()
