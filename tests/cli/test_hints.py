"""Hints that work when they are followed: whatever a command says to type can be typed."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main
from support.documents import ROOT
from support.saved_model import save_backbone, write_reviews

from autopeft.cli import main
from autopeft.cli.app import app

GROUP = typer.main.get_command(app)
COMMANDS = GROUP.commands  # type: ignore[attr-defined]
OPTIONS = {
    name: {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)} | {"--help"}
    for name, command in COMMANDS.items()
}
STANDS_FOR = {"NAME": "lora", "FILE": "space.yaml", "RUN": "run", "RECIPE": "mam", "TASK": "trec"}
RECIPE = "{name: pair, layers: [{at: [2], attach: [{lora: {rank: 2}}, ia3]}]}\n"
SPACE = "{name: small, layers: [{at: last 1, attach: [{lora: {rank: {choice: [1, 2]}}}, {optional: ia3}]}]}\n"
DATA = ("--text", "body", "--label", "verdict")
ON = ("--task", "reviews.csv", *DATA, "--model", "bert")
SMALL = ("--max-length", "24", "--batch-size", "8")


def hints(text: str) -> list[list[str]]:
    """The commands that a text proposes, as words: in backticks, on a line of their own, or at the end of a
    sentence after a colon."""
    found = re.findall(r"`(autopeft [^`]+)`|^\s+(autopeft .+)$|: (autopeft [a-z]+ .+)$", text, re.M)
    return [shlex.split("".join(parts))[1:] for parts in found]


def parse(words: list[str]) -> None:
    """Read the words as the command line does, and run nothing."""
    name, *rest = words
    assert name in COMMANDS, words
    COMMANDS[name].make_context(name, [STANDS_FOR.get(word, word) for word in rest])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a backbone, data, a recipe and a space."""
    save_backbone(tmp_path / "bert")
    write_reviews(tmp_path / "reviews.csv")
    (tmp_path / "pair.yaml").write_text(RECIPE)
    (tmp_path / "space.yaml").write_text(SPACE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


Say = Callable[..., str]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs a command, and returns all that it says."""

    def run(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        ended = main(list(words))
        out, err = capsys.readouterr()
        assert ended == code, err
        return f"{out}\n{err}"

    return run


def with_name(found: list[list[str]], name: str) -> list[str]:
    (words,) = [words for words in found if words[0] == name]
    return words


def test_what_comes_after_training(place: Path, say: Say) -> None:
    found = hints(say("train", "-r", "pair.yaml", *ON, *SMALL, "--steps", "2", "-o", "my run"))
    assert [words[0] for words in found] == ["export", "train", "predict"]
    say(*with_name(found, "predict"))
    after = hints(say(*with_name(found, "export")))
    assert [words[0] for words in after] == ["train", "predict"]
    say(*with_name(after, "predict"))
    for number, words in enumerate((with_name(found, "train"), with_name(after, "train"))):
        # The recipe sits on a layer that the default backbone may not have: it has to come with its own.
        assert words[words.index("--model") + 1] == "bert"
        at = words.index("--task") + 1
        say(
            *words[:at],
            "reviews.csv",
            *words[at + 1 :],
            *DATA,
            *SMALL,
            "--steps",
            "1",
            "-o",
            f"again{number}",
        )
    # The folder that was exported to is there now.
    found = hints(say("train", "-r", "pair.yaml", *ON, *SMALL, "--steps", "1", "-o", "second"))
    say(*with_name(found, "export"))


def test_what_comes_after_training_on_pairs(place: Path, say: Say) -> None:
    rows = [f"the film {i},a story {i},{'yes' if i % 2 else 'no'}" for i in range(80)]
    (place / "pairs.csv").write_text("\n".join(["sentence1,sentence2,label", *rows]) + "\n")
    asked = ("--task", "pairs.csv", "--model", "bert", *SMALL, "--steps", "1", "-o", "run")
    found = hints(say("train", "-r", "pair.yaml", *asked))
    say(*with_name(found, "predict"))
    answer = say(*with_name(hints(say(*with_name(found, "export"))), "predict"))
    assert re.search(r"\b(yes|no)\b", answer), "it answers with a label of the pairs"


def test_another_task_is_another(place: Path, say: Say) -> None:
    """After trec it is not trec again, and its name is one of the tasks."""
    out = say("train", "-r", "pair.yaml", "--task", "trec", "--model", "bert", *SMALL, "--steps", "1",
              "--effort", "quick", "-o", "run")  # fmt: skip
    words = with_name(hints(out), "train")
    task = words[words.index("--task") + 1]
    assert task != "trec"
    assert task in {row["name"] for row in json.loads(say("tasks", "--json"))}
    after = with_name(hints(say("export", "run", "-o", "winner")), "train")
    assert after[after.index("--task") + 1] == task
    say(*after, *SMALL, "--steps", "1", "--effort", "quick", "-o", "again")


@pytest.mark.slow
def test_what_comes_after_a_search(place: Path, say: Say) -> None:
    size = ("--trials", "2", "--steps", "2", "--workers", "0", "--baselines", "none", "--effort", "quick")
    out = say("search", *ON, *SMALL, "--space", "space.yaml", "--budget", "50%", *size, "-o", "found")
    found = hints(out)
    assert [words[0] for words in found] == ["export", "train", "predict"]
    say(*with_name(found, "export"))
    say(*with_name(found, "predict"))
    # It is done, and cannot go on: the way out is another search, which begins.
    refused = hints(say("search", "--resume", "found", code=2))
    words = with_name(refused, "search")
    assert words[-2:] == ["--from", "found"]
    assert "Dry run" in say(*words, "--dry-run")


def test_where_nothing_is_yet(place: Path, say: Say) -> None:
    for text in (say("runs"), say("report", code=2), say("evaluate", "latest", code=2)):
        (words,) = hints(text)
        parse(words)
        assert "--out" not in words
    (words,) = hints(say("runs", "--runs", "my runs"))
    # What the hint makes is listed where it was looked for.
    assert words[words.index("--out") + 1] == "my runs/first"
    parse(words)


def test_another_task_has_labels_that_the_head_does_not_know(place: Path, say: Say) -> None:
    say("train", "-r", "pair.yaml", *ON, *SMALL, "--steps", "1", "-o", "run")
    rows = [f"the film {i},{'maybe' if i % 2 else 'no'}" for i in range(80)]
    (place / "other.csv").write_text("\n".join(["body,verdict", *rows]) + "\n")
    text = say("evaluate", "run", "--task", "other.csv", *DATA, code=2)
    say(*with_name(hints(text), "train"), *SMALL, "--steps", "1", "-o", "instead")
    assert "maybe" in (place / "instead" / "winner" / "hybrid.json").read_text(), "its head knows the label"


def test_peft_has_no_words_for_it(place: Path, say: Say) -> None:
    say("train", "-r", "pair.yaml", *ON, *SMALL, "--steps", "1", "-o", "run")
    refused = say("export", "run", "-o", "a", "--as", "peft", code=1)
    assert "Without --as" in refused
    said = say("export", "run", "-o", "b")
    assert "Not in peft's format" in said
    assert "Without" not in said, "it was exported as it would be then"


@pytest.mark.parametrize("words", [("methods",), ("spaces", "--model", "bert"), ("tasks",)])
def test_lists_say_how_to_see_one(place: Path, say: Say, words: tuple[str, ...]) -> None:
    found = hints(say(*words))
    assert found
    for hint in found:
        parse(hint)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_in_the_help_can_be_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"autopeft {name}" in capsys.readouterr().out
    examples = hints(inspect.cleandoc(COMMANDS[name].help))
    assert examples
    for words in examples:
        parse(words[: words.index(">")] if ">" in words else words)


def test_commands_and_options_in_messages_exist() -> None:
    """In every text of the package that is no docstring, with `{}` for what is filled in."""
    texts: list[tuple[str, str]] = []
    for path in sorted((ROOT / "autopeft").rglob("*.py")):
        inside: set[int] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                inside.add(id(node.value))
            elif isinstance(node, ast.JoinedStr):
                inside |= {id(part) for part in node.values}
                parts = [str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values]
                texts.append((where, "".join(parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
                texts.append((where, node.value))
    every, checked = set().union(*OPTIONS.values()), 0
    # Of Ray, of optuna-dashboard, of llama.cpp, of vLLM and of torchrun.
    of_others = {
        "--object-store-memory",
        "--storage-class",
        "--lora",
        "--enable-lora",
        "--override-kv",
        "--reverse-prompt",
        "--lora-modules",
        "--max-lora-rank",
        "--nproc-per-node",
    }
    for where, text in texts:
        for name, rest in re.findall(r"(?:`|^\s*)autopeft ([a-z]+)\b([^`\n]*)", text, re.M):
            checked += 1
            assert name in COMMANDS, (where, text)
            assert set(re.findall(r"(?<=\s)--[a-z-]+", rest)) <= OPTIONS[name], (where, text)
        for option in re.findall(r"(?:^|(?<=[\s`]))--[a-z][a-z-]+", text if " " in text else ""):
            checked += 1
            assert option in every | of_others, (where, text)
    assert checked > 50
