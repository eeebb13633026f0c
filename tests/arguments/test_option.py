from typing import Annotated

from autopeft.arguments import Arguments, Option, docstring_of


def test_choices_stand_in_the_text_and_none_is_forgotten() -> None:
    names = ["a"]
    option = Option(help="Some of {listed}, or: {choices}.", choices=lambda: names)
    assert option.filled(option.help) == "Some of a, or: a."
    names += ["bb", "ccc"]
    assert option.filled(option.help) == "Some of a,bb,ccc, or: a, bb or ccc."
    told = Option(help="bb is slow.", choices=lambda: names)
    assert told.filled(told.help) == "bb is slow; a, bb or ccc."


def test_a_docstring_says_it_in_the_middle_of_a_sentence() -> None:
    class Told(Arguments):
        first: Annotated[int, Option(help="Recipes to train.")] = 1
        second: Annotated[int, Option(help="GPUs of one trial.")] = 1
        third: Annotated[int, Option(help="x", doc="for Python")] = 1

    lines = docstring_of(Told, "{arguments}").splitlines()
    assert lines == ["first: recipes to train.", "second: GPUs of one trial.", "third: for Python."]


def test_it_is_spelt_like_its_name_unless_it_says_otherwise() -> None:
    assert Option(help="x").spellings("max_length") == ("--max-length",)
    assert Option(help="x", flags=("--from", "-f")).spellings("warm_start") == ("--from", "-f")
