"""Every command and snippet of the README and the site runs, page by page and in the order of the page.

The sizes of searches and trainings are made small, a small BERT stands for the packaged `minilm` and a small
Llama for `smollm2-135m`, and searches run in this process. A search that a page resumes is cut off after its
first trial. Everything else is as it is typed. `.ci/run` runs the lines that install, and the test that a
block names runs what needs several machines.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import signal
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
from generate.pages import pages
from hybrid.test_persistence import rows
from support.documents import ROOT, text_of
from support.language import save_decoder
from support.saved_model import save_backbone, write_reviews
from support.snippets import Block, blocks, commands
from transformers import AutoTokenizer

from autopeft import effort
from autopeft.assets import models
from autopeft.cli import main
from autopeft.method import method_names
from autopeft.recipe.library import recipe_names
from autopeft.runs.folder import RunFolder

OWN = ["README.md", *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))]
EACH = [
    *(f"methods/{name}.md" for name in ("index", "compositions", *method_names())),
    *(f"recipes/{name}.md" for name in ("index", *recipe_names())),
]
# Lines that are not of `autopeft`: they install, and `.ci/run` runs them.
OTHERS = (
    "python3 -m venv ",
    ".venv/bin/pip install ",
    ".venv/bin/python -m pytest",
    ".venv/bin/mkdocs build",
)
# Examples of `--help` that take what is the reader's own: jobs of a run, a metric, images (see
# `tests/cli/test_images.py`), and a language model that is talked with (`tests/cli/test_chat.py`).
OF_ONES_OWN = (
    "debug latest trial-3-120 --pdb",
    "debug runs/my-run confirm-7-s1000",
    "debug latest 3 --metric my_metrics:first_number",
    "predict digits --file photos/",
    "chat latest",
    "chat winner --system Be brief. --temperature 0.7",
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that pages speak of, and small searches."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(webbrowser, "open", lambda *_, **__: True)
    for name, preset in effort.EFFORTS.items():
        small = replace(
            preset, trials=2, steps=4, train_rows=64, select_rows=32, test_rows=32, top=1, seeds=2, rates=1,
            seconds=None,
        )  # fmt: skip
        monkeypatch.setitem(effort.EFFORTS, name, small)
    for name in effort.QUICK_OF_LARGE:
        monkeypatch.setitem(effort.QUICK_OF_LARGE, name, effort.EFFORTS["quick"])
    # Small, but with room for a budget of half a per cent.
    sizes = {"vocab_size": 60_000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6}
    folder = save_backbone(tmp_path / "bert-base-uncased", biases=0.02, max_position_embeddings=256, **sizes)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 128}))
    decoder = save_decoder(tmp_path / "smollm2-135m", vocabulary=60_000, positions=256)
    small_ones = {"minilm": folder, "smollm2-135m": decoder}
    fetched = models.fetch
    monkeypatch.setattr(models, "fetch", lambda n, **more: small_ones.get(n) or fetched(n, **more))
    frame = pandas.read_csv(write_reviews(tmp_path / "reviews.csv"))
    frame = frame.rename(columns={"verdict": "stars"})
    for name in ("reviews.csv", "new-reviews.csv"):
        frame.to_csv(name, index=False)
    frame.rename(columns={"body": "text"}).to_csv("data.csv", index=False)
    chats = [{"prompt": f"How old is {n}?", "answer": f"It is {n}."} for n in range(200)]
    Path("chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return tmp_path


@contextlib.contextmanager
def cut_off() -> Iterator[None]:
    """Ctrl-C, as soon as a trial is written to the run folder."""
    write = RunFolder.append_line

    def once(folder: RunFolder, name: str, record: Any) -> None:
        write(folder, name, record)
        if name == "trials.jsonl":
            RunFolder.append_line = write  # type: ignore[method-assign]
            signal.raise_signal(signal.SIGINT)

    RunFolder.append_line = once  # type: ignore[method-assign]
    try:
        yield
    finally:
        RunFolder.append_line = write  # type: ignore[method-assign]


class Page:
    """A page that is typed from top to bottom, in one Python session."""

    def __init__(self, text: str) -> None:
        self.blocks = blocks(text)
        self.lines = [w for b in self.blocks if b.shell and b.elsewhere is None for w in commands(b)]
        self.typed = 0
        self.names: dict[str, Any] = {"__name__": "__page__"}

    def run(self) -> int:
        """Run everything; how many blocks were run."""
        return sum(self.block(block) for block in self.blocks)

    def block(self, block: Block) -> bool:
        if block.elsewhere is not None:
            return False
        if block.language == "yaml":
            Path(block.title or "recipe.yaml").write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, "page", "exec"), self.names)
        elif block.shell:
            for words in commands(block):
                self.command(words)
        return block.shell or block.language == "python"

    def command(self, words: list[str]) -> None:
        if " ".join(words) in OF_ONES_OWN:
            self.typed += 1
            return
        searches = words[0] == "search" and "--dry-run" not in words
        more = ["--workers", "0"] if searches and "--workers" not in words else []
        self.typed += 1
        following = [w for w in self.lines[self.typed :] if w[0] == "search"]
        resumed = searches and following != [] and "--resume" in following[0]
        said = io.StringIO()
        with contextlib.redirect_stderr(said), cut_off() if resumed else contextlib.nullcontext():
            code = main([*words, *more])
        if words[0] in ("search", "train"):
            time.sleep(1.1)  # nobody types two in one second, which `latest` could not tell apart
        assert code in ((0, 130) if resumed else (0,)), (
            f"autopeft {' '.join(words)}: {said.getvalue()[-2000:]}"
        )


@pytest.mark.parametrize("page", OWN)
def test_every_line_of_a_shell_is_run_somewhere(page: str) -> None:
    for block in blocks(text_of(page)):
        if block.shell and block.elsewhere is None:
            parts = [part.strip() for line in block.text.splitlines() for part in line.split("&&")]
            left = [p for p in parts if p and not p.startswith(("#", "autopeft ", ".venv/bin/autopeft "))]
            assert [p for p in left if not p.startswith(OTHERS)] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in OWN if blocks(text_of(p))])
def test_a_page_can_be_typed(page: str, place: Path) -> None:
    found = Page(text_of(page))
    if page == "README.md":
        model = str(place / "bert-base-uncased")
        found.names |= {
            "frame": pandas.read_csv("data.csv"),
            "rows": rows(),
            "tokenizer": AutoTokenizer.from_pretrained(model),
        }
    ran = found.run()
    assert ran or all(b.elsewhere or b.language in ("text", "toml", "yaml") for b in found.blocks)


@pytest.mark.slow
@pytest.mark.parametrize("page", EACH)
def test_a_recipe_of_a_page_is_shown_and_trained(page: str) -> None:
    text = pages()[page]
    assert Page(text).run() == (1 if "```bash" in text else 0)
    bare = ("index.md", "compositions.md", "methods/tpt.md", "methods/xattn_tuning.md")
    assert ("```bash" in text) != page.endswith(bare)


@pytest.mark.slow
def test_the_examples_of_help_can_be_typed(place: Path) -> None:
    """In the order of `autopeft --help`: what one command leaves is there for the next."""
    (place / "path/to").mkdir(parents=True)
    shutil.copytree(place / "bert-base-uncased", place / "path/to/bert")
    (place / "sentences.txt").write_text("the film was good\na dull story\n")
    shutil.copy(ROOT / "search_spaces" / "default.yaml", place / "mine.yaml")  # as `>` would make it
    (place / "lora.yaml").write_text("autopeft: 2\nlayers: [{attach: [lora]}]\n")
    (place / "pairs.csv").write_text(
        "a,b,label\n" + "".join(f"how old is {n}?,he is {n}.,{'yes' if n % 2 else 'no'}\n" for n in range(99))
    )
    data = "--task reviews.csv --text body --label stars"
    Page(
        f"```bash\nautopeft search --budget 0.5% {data} -o first\nautopeft export first -o winner\n"
        "autopeft train -r lora.yaml -t pairs.csv --text a --text-pair b -o pairs\n```"
    ).run()
    ran = 0
    commands_of = [p for p in pages() if p.startswith("reference/commands/")]
    for page in commands_of:
        if page.endswith("/export.md"):
            shutil.rmtree(
                "winner"
            )  # it makes its own, of a search whose heads read what others give them too
            Page(f"```bash\nautopeft search --budget 0.5% {data} --pooling own\n```").run()
        if page.endswith("/debug.md"):  # of a search, not of the training before it
            Page(f"```bash\nautopeft search --budget 0.5% {data} --trials 5\n```").run()
        ran += Page(pages()[page]).run()
    assert ran >= len(commands_of) - 2


@pytest.mark.slow
def test_the_first_command_of_the_readme_is_a_real_command(place: Path) -> None:
    """In a process of its own, on Ray, as a newcomer has it, with smaller numbers of trials and steps."""
    (words, *_) = commands(blocks(text_of("README.md"))[0])
    command = [
        sys.executable,
        "-m",
        "autopeft",
        *words,
        "--trials",
        "2",
        "--steps",
        "40",
        "--baselines",
        "none",
    ]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "movie-sentences" in done.stdout + done.stderr
    assert len(list((place / "runs").iterdir())) == 1
