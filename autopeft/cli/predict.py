"""`autopeft predict`: use a trained hybrid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopeft.cli.console import notify, say, say_json
from autopeft.cli.options import Json, OtherModel, Run
from autopeft.errors import DataError, UsageError

__all__ = ["predict"]


def predict(
    run: Run,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="A text; may be given several times.", show_default=False),
    ] = None,
    text_pair: Annotated[
        list[str] | None,
        typer.Option("--text-pair", help="The second text of each, for tasks of pairs.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="Texts from a file, one a line ('-' reads stdin).", show_default=False),
    ] = None,
    model: OtherModel = None,
    as_json: Json = False,
) -> None:
    """Predict with a trained hybrid: for each text a label and its probability, or what its kind of task has.

    \b
      autopeft predict latest --text "a warm, funny film"
      autopeft predict winner --file sentences.txt --json
    """
    texts = _texts(text, file)
    if text_pair and len(text_pair) != len(texts):
        raise UsageError(
            f"There are {len(texts)} texts but {len(text_pair)} second texts; give one for each."
        )
    from autopeft.cli.backbone import quiet_libraries
    from autopeft.export.package import find_saved, load_saved
    from autopeft.tasks import Split
    from autopeft.training import predict as predict_outputs

    quiet_libraries()
    saved = find_saved(run)
    hybrid, tokenizer = load_saved(saved, model=model, notify=notify)
    card, kind = saved.card, saved.card.task_kind
    rows = Split(texts, text_pair or None, [None] * len(texts))
    encoded = kind.encode(rows, tokenizer, card.max_length, labelled=False, cached=False)
    outputs = predict_outputs(hybrid.model, encoded, batch_size=64)
    found = [{"text": t, **kind.present(o, card.labels)} for t, o in zip(texts, outputs, strict=True)]
    if as_json:
        say_json(found)
        return
    for item in found:
        say(f"{kind.line(item)}\t{item['text']}")


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
