"""The command of an experiment whose rows several processes train, each its own part."""

from __future__ import annotations

import argparse

import torch

__all__ = ["asked_part", "part_of"]


def part_of(text: str) -> tuple[int, int]:
    """`K/N`, which names the K-th of N processes that share a work, as two numbers."""
    part, parts = map(int, text.split("/"))
    return part, parts


def asked_part(described: str | None, shared: str) -> slice | None:
    """Read the words of the command: which of what is `shared` this process trains, on one thread; `None`
    where nothing is to be trained, as tables alone are asked for.

    Args:
        described: what `--help` says.
        shared: what the processes share, in the singular: cell, recipe, task.
    """
    parser = argparse.ArgumentParser(
        description=described, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    told = f"every N-th {shared}, from the K-th on"
    parser.add_argument("--part", type=part_of, default=(0, 1), metavar="K/N", help=told)
    parser.add_argument("--tables", action="store_true", help="print what there is, train nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    part, parts = given.part
    return None if given.tables else slice(part, None, parts)
