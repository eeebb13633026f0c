"""Record trained recipes, for `replay.py`.

    python experiments/replay/record.py samplers
    python experiments/replay/record.py autopeft
    python experiments/replay/record.py width

`samplers` is the default space as it first was, on `movie-sentences` at 0.5 %, `autopeft` that paper's own
space on 1,000 rows of `trec`; each takes some three hours of one core. `width` is the default space with the
reparameterized family in it, at random alone (one hour). Interrupt and go on at any time: what stands in
`trials.jsonl` of the experiment's folder is not trained again. Two processes share the work with `--part 0/2`
and `--part 1/2`.
"""

from __future__ import annotations

import argparse

import torch
from recording import Recording
from settings import FOLDERS, SETTINGS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=sorted(SETTINGS))
    parser.add_argument(
        "--part", default="0/1", metavar="K/N", help="take every N-th recipe, from the K-th on"
    )
    arguments = parser.parse_args()
    part, parts = map(int, arguments.part.split("/"))
    torch.set_num_threads(1)
    name = arguments.experiment
    Recording(FOLDERS[name] / "trials.jsonl", SETTINGS[name]).run(part, parts)


if __name__ == "__main__":
    main()
