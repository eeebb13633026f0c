from __future__ import annotations

from autopeft.arguments import Option


def test_choices_stand_in_the_text_and_none_is_forgotten() -> None:
    names = ["a"]
    option = Option(help="Some of {listed}, or: {choices}.", choices=lambda: names)
    assert option.help_text() == "Some of a, or: a."
    names += ["bb", "ccc"]
    assert option.help_text() == "Some of a,bb,ccc, or: a, bb or ccc."
    told = Option(help="bb is slow.", choices=lambda: names)
    assert told.help_text() == "bb is slow; a, bb or ccc."


def test_a_docstring_says_it_in_the_middle_of_a_sentence() -> None:
    assert Option(help="Recipes to train.").doc_text() == "recipes to train"
    assert Option(help="GPUs of one trial.").doc_text() == "GPUs of one trial"
    assert Option(help="x", doc="for Python").doc_text() == "for Python"


def test_it_is_spelt_like_its_name_unless_it_says_otherwise() -> None:
    assert Option(help="x").spellings("max_length") == ("--max-length",)
    assert Option(help="x", flags=("--from", "-f")).spellings("warm_start") == ("--from", "-f")
