"""`autopeft predict`: use a trained hybrid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopeft.cli.console import notify, say, say_json
from autopeft.cli.declared import Given, declared
from autopeft.cli.options import Json, Run
from autopeft.errors import DataError, UsageError
from autopeft.export.arguments import PredictArguments

__all__ = ["predict"]


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
        typer.Option("--file", help="Texts from a file, one a line ('-' reads stdin).", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict with a trained hybrid: for each text a label and its probability, or what its kind of task has.

    \b
      autopeft predict latest --text "a warm, funny film"
      autopeft predict winner --file sentences.txt --json
    """
    texts = _texts(text, file)
    from autopeft.assets import quiet_libraries
    from autopeft.export.api import predict as ask
    from autopeft.export.package import find_saved

    quiet_libraries()
    saved = find_saved(run)
    found = ask(saved, texts, notify=notify, **given)
    if as_json:
        say_json(found)
        return
    for item in found:
        say(f"{saved.card.task_kind.line(item)}\t{item['text']}")


def _texts(given: list[str] | None, file: Path | None) -> list[str]:
    if bool(given) == (file is not None):
        raise UsageError("Give the texts by --text or by --file, one of the two.")
    if given:
        return given
    assert file is not None
    try:
        content = (
            typer.get_text_stream("stdin").read() if str(file) == "-" else file.read_text(encoding="utf-8")
        )
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}.") from error
    texts = [line for line in content.splitlines() if line.strip()]
    if not texts:
        raise DataError(f"{file} holds no text.")
    return texts
