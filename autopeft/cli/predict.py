"""`autopeft predict`: use a trained hybrid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopeft.cli.console import notify, say, say_json
from autopeft.cli.options import Json, OtherModel, Run
from autopeft.errors import DataError, UsageError

if TYPE_CHECKING:
    from autopeft.export.package import Card

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
    """Predict with a trained hybrid: a label and its probability for each text (a number, for regression).

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
    from autopeft.tasks.encode import encode_texts
    from autopeft.training import predict as predict_logits

    quiet_libraries()
    saved = find_saved(run)
    hybrid, tokenizer = load_saved(saved, model=model, notify=notify)
    rows = encode_texts(
        texts, text_pair or None, tokenizer, saved.card.max_length, kind=saved.card.kind, cached=False
    )
    logits = predict_logits(hybrid.model, rows, batch_size=64)
    found = [
        _prediction(t, [float(v) for v in row], saved.card) for t, row in zip(texts, logits, strict=True)
    ]
    if as_json:
        say_json(found)
        return
    for item in found:
        said = f"{item['value']:.4f}" if "value" in item else f"{item['label']}  {item['probability']:.4f}"
        say(f"{said}\t{item['text']}")


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


def _prediction(text: str, logits: Sequence[float], card: Card) -> dict[str, Any]:
    if card.kind == "regression":
        return {"text": text, "value": logits[0]}
    top = max(logits)
    weights = [math.exp(v - top) for v in logits]
    total = sum(weights)
    shares = {label: w / total for label, w in zip(card.labels, weights, strict=True)}
    best = max(shares, key=lambda label: shares[label])
    return {
        "text": text,
        "label": best,
        "probability": shares[best],
        "probabilities": shares,
        "logits": list(logits),
    }
