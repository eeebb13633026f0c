"""Bad input ends with one clear sentence on stderr and exit code 2, whatever the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.saved_model import save_backbone, write_reviews
from transformers import ResNetConfig

from autopeft.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone, a data file and recipes, all of which the cases name by relative paths."""
    folder = tmp_path_factory.mktemp("place")
    save_backbone(folder / "bert")
    write_reviews(folder / "reviews.csv")
    (folder / "resnet").mkdir()
    ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]).save_pretrained(folder / "resnet")
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "broken.json").write_text("{")
    (folder / "blank.csv").write_text("text,label\na,0\nb,1\n,1\n")
    return folder


def _layers(item: str) -> str:
    return f"autopeft: 2\nname: x\nlayers:\n  - at: all\n    attach:\n      - {item}\n"


RECIPES = {
    "good": _layers("lora: {rank: 2}"),
    "method": _layers("lorra: {rank: 2}"),
    "site": _layers("lora: {sites: [qq]}"),
    "elsewhere": _layers("lora: {sites: [gate_proj]}"),
    "composition": _layers("gate: [dora: {rank: 2}, lora: {rank: 2}]"),
    "range": _layers("lora: {rank: 0}"),
    "key": _layers("lora: {ranks: 2}"),
    "duplicate": _layers("lora: {rank: 2}") + "name: y\n",
    "anchor": _layers("lora: &a {rank: 2}"),
    "tag": _layers("lora: !!python/object:os.system {rank: 2}"),
}
SHOW = ("show", "--model", "bert")
TRAIN = ("train", "--model", "bert", "--recipe", "good.yaml", "--steps", "1")
SEARCH = ("search", "--model", "bert", "--space", "lora", "--dry-run", "--task", "reviews.csv")
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "misspelt method": ((*SHOW, "method.yaml"), ("method.yaml:6", "'lorra'", "Did you mean 'lora'")),
    "misspelt site": ((*SHOW, "site.yaml"), ("'qq'", "Did you mean 'q")),
    "site of another backbone": ((*SHOW, "elsewhere.yaml"), ("'bert' has no site 'gate_proj'", "up, down")),
    "impossible composition": ((*SHOW, "composition.yaml"), ("dora", "gate")),
    "value out of range": ((*SHOW, "range.yaml"), ("range.yaml:6", "rank")),
    "unknown key": ((*SHOW, "key.yaml"), ("'ranks'", "Did you mean 'rank'")),
    "duplicate key": ((*SHOW, "duplicate.yaml"), ("duplicate.yaml:7", "name")),
    "anchor": ((*SHOW, "anchor.yaml"), ("anchor.yaml:6", "anchor")),
    "tag": ((*SHOW, "tag.yaml"), ("tag.yaml:6", "tag")),
    "no such recipe": ((*SHOW, "goood.yaml"), ("goood.yaml", "Did you mean 'good.yaml'")),
    "no such fixed recipe": ((*SHOW, "mamm"), ("'mamm'", "Did you mean 'mam'")),
    "model without a site map": (("count", "good.yaml", "--model", "resnet"), ("resnet", "site")),
    "more labels than any head": (("count", "good.yaml", "--labels", "99999999"), ("--labels", "1000000")),
    "no such model": (("count", "good.yaml", "--model", "no/such/model/here"), ("no/such/model/here",)),
    "unreadable budget": ((*SEARCH, "--budget", "lots"), ("'lots'", "0.5%")),
    "budget that nothing fits": ((*SEARCH, "--budget", "3"), ("3",)),
    "size limit without sense": ((*SEARCH, "--budget", "1%", "--max-file", "big"), ("'big'", "'500MB'")),
    "time limit without a unit": (
        (*SEARCH, "--budget", "1%", "--max-step-time", "200"),
        ("no unit", "'200ms'"),
    ),
    "limit that nothing meets": (
        (
            *SEARCH,
            "--budget",
            "20%",
            "--max-file",
            "1kB",
            "--label",
            "verdict",
            "--pooling",
            "own",
            "--max-length",
            "24",
        ),
        ("size of the saved hybrid at most 1kB", "The nearest is not"),
    ),
    "no such space": ((*SEARCH, "--budget", "1%", "--space", "lorra"), ("'lorra'", "Did you mean 'lora'")),
    "option under another name": ((*SEARCH, "--budget", "1%", "--mergeable"), ("Write --serve merged.",)),
    "no such sampler": ((*SEARCH, "--budget", "1%", "--sampler", "gpp"), ("'gpp'", "Did you mean 'gp'")),
    "no such effort": ((*SEARCH, "--budget", "1%", "--effort", "quik"), ("'quik'", "Did you mean 'quick'")),
    "no such task": ((*TRAIN, "--task", "sst3"), ("'sst3'", "Did you mean 'sst2'")),
    "no such file": ((*TRAIN, "--task", "review.csv"), ("review.csv",)),
    "CSV without the label column": (
        (*TRAIN, "--task", "reviews.csv", "--text", "body", "--label", "verdikt"),
        ("verdikt", "Did you mean 'verdict'"),
    ),
    "blank text": (
        (*TRAIN, "--task", "blank.csv"),
        ("blank.csv: column 'text' has no text in row 3", "--drop-empty"),
    ),
    "wrong weights": (
        (*TRAIN, "--task", "reviews.csv", "--class-weights", "a,b"),
        ("--class-weights", "'a,b'"),
    ),
    "wrong precision": ((*TRAIN, "--task", "reviews.csv", "--precision", "fp8"), ("precision", "fp8")),
    "no such run": (("evaluate", "nothing"), ("'nothing'",)),
    "texts twice": (("predict", "x", "--text", "a", "--file", "b"), ("--text", "--file")),
    "no such method": (("methods", "lorra"), ("'lorra'", "Did you mean 'lora'")),
    "file of no space": (("spaces", "--yaml"), ("--yaml", "autopeft spaces default")),
    "file of a space as JSON": (("spaces", "default", "--yaml", "--json"), ("without --json",)),
    "drawing as JSON": ((*SHOW, "good.yaml", "--format", "svg", "--json"), ("--format", "--json")),
    "no such command": (("serch",), ("serch",)),
    "no such option": (("search", "--bugdet", "1%"), ("--bugdet",)),
    "missing option": (("search", "--task", "reviews.csv"), ("--budget",)),
    "option out of range": ((*SEARCH, "--budget", "1%", "--trials", "0"), ("--trials",)),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_one_sentence_and_exit_code_2(
    case: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.delenv("AUTOPEFT_DEBUG", raising=False)
    argv, words = CASES[case]
    before = sorted(p.name for p in place.iterdir())
    code = main(argv)
    errors = capsys.readouterr().err
    assert code == 2, errors
    assert errors.startswith("error: ")
    assert "Traceback" not in errors
    assert len(errors.strip().splitlines()) == 1
    for word in words:
        assert word in errors
    assert sorted(p.name for p in place.iterdir()) in (before, sorted([*before, "runs"]))


def test_all_problems_of_a_recipe_come_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    recipe = tmp_path / "two.yaml"
    recipe.write_text(_layers("lora: {rank: -1}") + "      - ia33\n")
    assert main(("show", str(recipe), "--model", str(place / "bert"))) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert "rank" in lines[0]
    assert "'ia33'" in lines[1]


def test_from_outside_there_is_no_traceback_unless_asked_for(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real thing: a process, its exit code, its two streams."""
    argv = [*SHOW, "method.yaml", "--json"]
    plain = subprocess.run(
        [sys.executable, "-m", "autopeft", *argv], cwd=place, capture_output=True, text=True
    )
    assert (plain.returncode, plain.stdout) == (2, "")
    assert plain.stderr.count("\n") == 1
    monkeypatch.chdir(place)
    monkeypatch.setenv("AUTOPEFT_DEBUG", "1")
    assert main(argv) == 2
    errors = capsys.readouterr().err
    assert "Traceback" in errors
    assert errors.strip().splitlines()[-1] == plain.stderr.strip()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("boom"), "RuntimeError: boom."),
        (RuntimeError("It burst.\n"), "RuntimeError: It burst."),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device."),
        (AssertionError(), "AssertionError."),
    ],
)
def test_what_nobody_foresaw_is_a_sentence_with_a_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    def burst(*args: object) -> None:
        raise error

    monkeypatch.delenv("AUTOPEFT_DEBUG", raising=False)
    monkeypatch.setattr("autopeft.runs.folder.list_runs", burst)
    assert main(("runs",)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
    assert "AUTOPEFT_DEBUG=1" in line


def test_valid_work_that_fails_is_exit_code_1(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe outside the budget that `count` was asked to hold is no bad usage."""
    argv = ("count", str(place / "good.yaml"), "--model", str(place / "bert"), "--budget", "10", "--json")
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["deployed"] == 3 * 2 * 2 * (32 + 32)
    assert "outside the budget 10" in err
