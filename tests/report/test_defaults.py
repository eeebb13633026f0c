"""Every default has a row in `methods/defaults.yaml` that is true and says where the default comes from."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
from pydantic import Field, ValidationError, create_model
from support.defaults import configs, problems

from autopeft.method import get_method, method_names
from autopeft.report.defaults import Published, published_defaults, sources_sheet
from autopeft.report.methods import describe

CONFIGS = configs()
OPTIONS = [(name, key) for name, (config, _) in CONFIGS.items() for key in config.model_fields]
TEXT = files("autopeft.methods").joinpath("defaults.yaml").read_text(encoding="utf-8")


def test_every_option_of_every_method_and_composition_has_its_row() -> None:
    assert problems(published_defaults(), CONFIGS) == []
    assert set(method_names()) < set(published_defaults())


def test_nothing_that_is_shown_of_a_method_rests_on_memory() -> None:
    assert "from memory" not in TEXT
    assert [name for name in method_names() if "from memory" in (get_method(name).__doc__ or "")] == []


def _other(value: Any) -> Any:
    """Another default, close to the first where it is a number."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value * 1.01 if isinstance(value, float) and value else value + 1
    return 3 if value is None else "something else"


@pytest.mark.parametrize(("name", "key"), OPTIONS)
def test_another_default_is_found_out(name: str, key: str) -> None:
    config, sites = CONFIGS[name]
    if key == "sites":
        changed: dict[str, Any] = {**CONFIGS, name: (config, (*sites, "o"))}
    else:
        field = config.model_fields[key]
        model = create_model(
            "Changed", __base__=config, **{key: (field.annotation, Field(default=_other(field.default)))}
        )
        changed = {**CONFIGS, name: (model, sites)}
    found = problems(published_defaults(), changed)
    assert len(found) == 1
    assert found[0].startswith(f"{name}.{key}: the table has ")


@pytest.mark.parametrize(
    ("name", "key", "other"),
    [
        ("lora", "alpha", 8),
        ("dora", "alpha", 8),
        ("adalora", "alpha", 16),
        ("adalora", "initial_rank", 9),
        ("dylora", "deployed_rank", 1),
        ("krona", "a1", "24 on a width of 768"),
        ("krona", "a2", "32 on a width of 768"),
        ("serial_adapter", "activation", "gelu"),
        ("serial_adapter", "train_norms", True),
    ],
)
def test_what_a_default_of_null_comes_to_is_compared(name: str, key: str, other: Any) -> None:
    table = published_defaults()
    entry = table[name]
    row = entry.options[key].model_copy(update={"means": other})
    changed = entry.model_copy(update={"options": {**entry.options, key: row}})
    (found,) = problems({**table, name: changed}, CONFIGS)
    assert found.startswith(f"{name}.{key}: the table means {other!r}, the code ")


def test_unknown_and_missing_rows_are_named() -> None:
    table = dict(published_defaults())
    lora = table.pop("lora")
    row = lora.options["rank"]
    options = {**{k: v for k, v in lora.options.items() if k != "alpha"}, "rnak": row}
    table["lore"] = lora
    assert problems(table, CONFIGS) == ["lora: no entry", "lore: there is no such method or composition"]
    del table["lore"]
    table["lora"] = lora.model_copy(update={"options": options})
    assert problems(table, CONFIGS) == ["lora.alpha: no row", "lora.rnak: there is no such option"]


ROW = {"default": 1, "source": "arXiv:2106.09685 §4.1"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"default": 1}, "source"),
        ({"default": 1, "source": ""}, "must be 'own'"),
        ({"default": 1, "source": "the paper"}, "must be 'own'"),
        ({"default": 1, "source": "arXiv:2106.09685; somewhere"}, "must be 'own'"),
        ({"default": 1, "source": "ACL:emnlp-main.884"}, "must be 'own'"),
        ({"default": 1, "source": "microsoft/LoRA"}, "must be 'own'"),
        ({"default": 1, "source": "page of the paper"}, "must be 'own'"),
        ({"default": 1, "source": "arXiv:2106.09685 (from memory)"}, "must be 'own'"),
        ({"default": 1, "source": "own", "sought": "arXiv:2106.09685"}, "needs a 'why'"),
        ({"default": 1, "source": "own option"}, "needs a 'why'"),
        ({"default": 1, "source": "own", "why": "It is."}, "needs 'sought'"),
        ({"default": 1, "source": "own", "sought": "far and wide", "why": "It is."}, "needs 'sought'"),
        ({**ROW, "source": "own option", "sought": "arXiv:2106.09685", "why": "It is."}, "leave it out"),
        ({**ROW, "sought": "arXiv:2106.09685"}, "leave it out"),
        ({**ROW, "published": 2}, "needs a 'why'"),
        ({**ROW, "published": 1, "why": "It is."}, "leave it out"),
        ({"default": 1, "source": "own option", "published": 2, "why": "It is."}, "other than 'own option'"),
        ({**ROW, "default": None}, "needs 'means'"),
        ({**ROW, "reason": "It is."}, "Extra inputs"),
    ],
)
def test_a_row_without_its_source_is_refused(row: dict[str, Any], message: str) -> None:
    entry = {"paper": "arXiv:2106.09685", "training": {"source": "arXiv:2106.09685"}}
    assert Published.model_validate({**entry, "options": {"rank": ROW}}).options["rank"].default == 1
    with pytest.raises(ValidationError, match=message):
        Published.model_validate({**entry, "options": {"rank": row}})


@pytest.mark.parametrize(
    "source",
    [
        "arXiv:2106.09685 §4.1 (notes)",
        "ACL:2023.emnlp-main.884 (notes); microsoft/LoRA README.md loralib/layers.py",
        "page ar5iv.labs.arxiv.org/html/2106.09685; arXiv:2106.09685",
    ],
)
def test_what_was_read_or_looked_through_is_a_paper_notes_on_it_files_or_a_page(source: str) -> None:
    entry = {"paper": "arXiv:2106.09685", "training": {"source": "arXiv:2106.09685"}}
    for row in ({"source": source}, {"source": "own", "sought": source, "why": "It is."}):
        given = {**entry, "options": {"rank": {"default": 1, **row}}}
        assert Published.model_validate(given).options["rank"].source in (source, "own")


def test_training_without_its_source_is_refused() -> None:
    entry = {"paper": "arXiv:2106.09685", "options": {"rank": ROW}}
    with pytest.raises(ValidationError, match="source 'x' must be"):
        Published.model_validate({**entry, "training": {"source": "x"}})


def test_papers_that_arxiv_has_not_are_named_by_the_acl_anthology() -> None:
    paper = "ACL:2023.emnlp-main.884"
    row = {"default": 1, "source": f"{paper} §2.3"}
    entry = {"paper": paper, "training": {"source": "arXiv:2106.09685"}, "options": {"rank": row}}
    assert Published.model_validate(entry).paper == paper
    with pytest.raises(ValidationError, match="paper"):
        Published.model_validate({**entry, "paper": "ACL:884"})


def test_sources_are_shown_with_the_methods() -> None:
    sheet = sources_sheet("mov")
    assert sheet is not None
    rows = {row[0]: row for row in sheet.rows}
    assert rows["experts"][1:4] == ("10", "30", "for-ai/parameter-efficient-moe configs/mov.gin")
    assert rows["experts"][4].endswith(".")
    assert rows["sites"][1] == "k, v, cross_k, cross_v, down"
    assert "learning rate: 0.0003" in sheet.notes[0]
    looked_for = sources_sheet("sam")
    assert looked_for is not None
    files = "fuzihaofzh/AnalyzeParameterEfficientFinetune src/runner.py"
    assert {row[0]: row[3] for row in looked_for.rows}["epsilon"] == f"own; sought in {files}"
    assert sources_sheet("output_shift") is None
    data = describe("lora")["defaults"]
    assert data["options"]["rank"]["source"] == "microsoft/LoRA examples/NLU/roberta_base_mnli.sh"
    assert data["training"]["weight_decay"] == 0.1
    assert describe("gate")["defaults"]["options"]["masked"]["published"] is False
    assert describe("sum")["defaults"] is None


def test_the_papers_are_those_that_the_classes_name() -> None:
    for name in method_names():
        text = get_method(name).__doc__
        for paper in published_defaults()[name].paper.split("; "):
            assert paper in text, f"{name} does not cite {paper}"
