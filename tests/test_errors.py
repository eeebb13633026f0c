"""Messages fit on a screen and hold nothing that a terminal would act on."""

from __future__ import annotations

import pickle

import pytest

from autopeft import errors
from autopeft.errors import AutoPEFTError, RecipeError, near, printable


def test_a_usual_message_is_kept_as_it_is() -> None:
    message = (
        "recipe.yaml:3: there is no method 'lorra'.\n" + "a" * 1200 + "\nÄ, 日本\u3000語, e\u0301, \u200c."
    )
    assert str(RecipeError(message)) == message
    assert RecipeError(message).args == (message,)
    assert str(AutoPEFTError()) == ""
    assert AutoPEFTError(3).args == (3,)


def test_the_middle_of_a_long_line_is_left_out() -> None:
    found = str(RecipeError("there is no method " + "a" * 100_000 + ". Take lora."))
    assert found.startswith("there is no method aaa")
    assert found.endswith("aaa. Take lora.")
    assert "(98,931 letters left out)" in found
    assert len(found) < 1200


def test_the_end_of_many_lines_is_left_out() -> None:
    lines = str(RecipeError("\n".join(f"line {i}" for i in range(15_000)))).split("\n")
    assert lines[:39] == [f"line {i}" for i in range(39)]
    assert lines[39:] == ["… and 14,961 more lines"]
    assert str(RecipeError("\n".join("a" * 40))).count("\n") == 39


@pytest.mark.parametrize(
    "trick", ["\x1b", "\x9b", "\x07", "\r", "\x00", "\u202e", "\u2066", "\u2028", "\ud800", "\ufeff"]
)
def test_what_a_terminal_would_act_on_is_not_printed(trick: str) -> None:
    assert str(RecipeError(f"a{trick}[2Jb\nc")) == "a�[2Jb\nc"
    assert printable(f"a{trick}b\nc\t", keep="\t") == "a�b�c\t"


def test_errors_travel_between_processes() -> None:
    error = RecipeError("a" * 5000)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (RecipeError, str(error))


def test_near_matches() -> None:
    assert near("lorra", ["lora", "ia3"]) == " Did you mean 'lora'?"
    assert near("x", ["lora"]) == ""


def test_nothing_is_near_a_word_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """To compare two texts takes memory for each letter that they share: 600 MB for 3 million letters."""
    monkeypatch.setattr(errors, "get_close_matches", lambda *args, **options: ["compared"])
    assert near("a" * 300, ["a" * 299]) == " Did you mean 'compared'?"
    assert near("a" * 301, ["a" * 299]) == ""
