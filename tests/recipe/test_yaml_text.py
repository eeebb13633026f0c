from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autopeft.errors import RecipeError
from autopeft.recipe import Recipe
from autopeft.recipe.yaml_text import MAX_BYTES, dump_yaml, read_text, read_yaml


def message(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(text, "f.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("2.0e-3", 2e-3),
        ("1E3", 1000.0),
        ("5.", 5.0),
        (".5", 0.5),
        ("-7", -7),
        ("0x1F", 31),
        ("0o17", 15),
        ("010", 10),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("1_000", "1_000"),
        ("2001-01-01", "2001-01-01"),
        ("0.1%", "0.1%"),
        ("0-5", "0-5"),
        ("'1'", "1"),
        ('"null"', "null"),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: Any) -> None:
    read = read_yaml(f"a: {text}", "x")["a"]
    assert read == value
    assert type(read) is type(value)


def test_everything_refused_is_reported_with_its_line() -> None:
    lines = message("a: &x 1\nb: *x\nc: !!int 3\nc: 2\n<<: 3\n? [1]\n: 2\n---\nd: 1\n").splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"f.yaml:{n}" for n in (1, 2, 3, 4, 5, 6, 8)]
    for line, word in zip(
        lines, ["anchor", "alias", "tag", "duplicate", "merge", "key", "document"], strict=True
    ):
        assert word in line


def test_duplicate_keys_of_different_spelling_and_nested_ones() -> None:
    assert "first on line 1" in message("1: a\n'1': b\n")
    assert "f.yaml:3: duplicate key 'rank'" in message("layers:\n- attach:\n  - lora: {rank: 1, rank: 2}\n")


def test_problems_of_a_recipe_carry_lines() -> None:
    lines = message(
        "autopeft: 2\nlayers:\n  - at: al\n    attach:\n      - lora:\n          rank: 0\n"
    ).splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["f.yaml:3", "layers[0].at"],
        ["f.yaml:6", "layers[0].attach[0].lora.rank"],
    ]


@pytest.mark.parametrize(
    "text", ["a: [", "a: b: c", "\tx: 1", "a: \x00", "'", "%YAML 9.9\n---\na: 1", "- a\nb: c", "{"]
)
def test_broken_text_is_one_error(text: str) -> None:
    assert message(text).startswith("f.yaml")


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 5000, "- " * 5000 + "x"])
def test_nesting_is_bounded(text: str) -> None:
    assert "levels deep" in message(text)


def test_size_is_bounded(tmp_path: Path) -> None:
    assert "KiB" in message("#" + "x" * MAX_BYTES)
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(RecipeError, match="KiB"):
        read_text(tmp_path / "large.yaml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    with pytest.raises(RecipeError, match="UTF-8"):
        Recipe.from_file(tmp_path / "latin.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.from_file(tmp_path / "none.yaml")


def test_shared_objects_are_written_out() -> None:
    shared = {"rank": [1]}
    assert read_yaml(dump_yaml({"a": shared, "b": shared}), "x") == {"a": shared, "b": shared}


@pytest.mark.parametrize("text", ["%YAML 1.3\n---\nname: x", 'name: "\\U00110000"', 'name: "\\UFFFFFFFF"'])
def test_what_the_parser_itself_stumbles_over_is_no_yaml(text: str) -> None:
    with pytest.raises(RecipeError, match="not valid YAML"):
        read_yaml(text, "recipe")
