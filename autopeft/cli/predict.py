"""`autopeft predict`: use a trained hybrid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopeft.cli.console import notify, one_line, say, say_json, terminal
from autopeft.cli.declared import Given, declared
from autopeft.cli.options import Json, Run
from autopeft.errors import UsageError
from autopeft.export.arguments import PredictArguments

if TYPE_CHECKING:
    from autopeft.export.package import Saved

__all__ = ["predict"]

_SHOWN = 5


@declared(PredictArguments, places={"text": None, "file": "text_pair"})
def predict(
    run: Run,
    given: Given,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="A text; may be given several times.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            help="A table (CSV, JSONL, Parquet), or a file with one text a line; '-' reads lines from stdin. "
            "Of images: a folder, an image, or a Parquet file.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict with a trained hybrid: for each text a label and its probability, or what its kind of task has.

    Rows are answered in their order. One that cannot be answered, such as an empty one, says so in its place.

    \b
      autopeft predict latest --text "a warm, funny film"
      autopeft predict winner --file reviews.csv --text-column body --out answers.csv
      autopeft predict digits --file photos/
      autopeft predict pairs --text "How old is he?" --text-pair "He is nine."
      autopeft predict latest --task trec --text "Who wrote it?"
    """
    texts = _texts(text, file)
    from autopeft.assets import quiet_libraries
    from autopeft.export.package import find_saved

    quiet_libraries()
    if "task" in given:
        from autopeft.export.of_task import one_task

        moved = {name: given[name] for name in ("model", "device") if name in given}
        with one_task(find_saved(run), given.pop("task"), notify=notify, **moved) as of_task:
            _print_answers(of_task, texts, given, as_json=as_json)
    else:
        _print_answers(find_saved(run), texts, given, as_json=as_json)


def _print_answers(saved: Saved, texts: list[str] | Path, given: dict[str, Any], *, as_json: bool) -> None:
    from autopeft.export.api import predict as ask

    alone = isinstance(texts, list) and len(texts) == 1 and terminal() and not as_json and "out" not in given
    streamed: list[str] = []
    if alone and saved.card.task_kind.scorer.writes:

        def told(piece: str) -> None:
            streamed.append(piece)
            say(piece, end="")

        given["told"] = told
    found = ask(saved, texts, notify=notify, **given)
    if streamed:
        say()
        return
    missing = [i for i, item in enumerate(found, start=1) if "problem" in item]
    if missing:
        notify(_unanswered(missing, found))
    if as_json:
        say_json(found)
    elif "out" in given:
        say(f"Wrote {len(found):,} rows to {given['out']}.")
    else:
        for item in found:
            answer = (
                f"no answer: {item['problem']}"
                if "problem" in item
                else saved.card.task_kind.scorer.line(item)
            )
            shown = [_text(item[k]) for k in (saved.card.task_kind.schema.row_name, "text_pair") if k in item]
            say("\t".join([answer, *shown]))


def _text(value: Any) -> str:
    """A text, or the words of one, on one line."""
    return one_line(" ".join(map(str, value)) if isinstance(value, list) else value)


def _unanswered(missing: Sequence[int], found: Sequence[Mapping[str, Any]]) -> str:
    shown = ", ".join(f"row {i} ({found[i - 1]['problem']})" for i in missing[:_SHOWN])
    more = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
    verb = "has" if len(missing) == 1 else "have"
    return f"{len(missing):,} of {len(found):,} rows {verb} no answer: {shown}{more}."


def _texts(given: list[str] | None, file: Path | None) -> list[str] | Path:
    if bool(given) == (file is not None):
        raise UsageError("Give the texts by --text or by --file, one of the two.")
    if given:
        return given
    assert file is not None
    if str(file) != "-":
        return file
    from autopeft.tasks.files import MOST_BYTES, lines_of

    content = typer.get_binary_stream("stdin").read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise UsageError(f"stdin gives more than {MOST_BYTES:,} bytes, which are the most that are read.")
    return lines_of(content, "stdin")
