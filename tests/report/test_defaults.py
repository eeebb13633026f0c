"""Every default has a row in `methods/defaults.yaml` that is true and says where the default comes from."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from support.defaults import configs, problems

from autopeft.method import get_method, method_names
from autopeft.report.defaults import Published, published_defaults, sources_sheet
from autopeft.report.methods import describe


def test_every_option_of_every_method_and_composition_has_its_row() -> None:
    assert problems(published_defaults(), configs()) == []
    assert set(method_names()) < set(published_defaults())


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
    entry = {"paper": "ACL:2023.emnlp-main.884", "training": {"source": source}}
    for row in ({"source": source}, {"source": "own", "sought": source, "why": "It is."}):
        given = {**entry, "options": {"rank": {"default": 1, **row}}}
        assert Published.model_validate(given).options["rank"].source in (source, "own")


@pytest.mark.parametrize(
    ("changed", "field"), [({"training": {"source": "x"}}, "source"), ({"paper": "ACL:884"}, "paper")]
)
def test_training_and_paper_have_sources_too(changed: dict[str, Any], field: str) -> None:
    entry = {
        "paper": "arXiv:2106.09685",
        "training": {"source": "arXiv:2106.09685"},
        "options": {"rank": ROW},
    }
    with pytest.raises(ValidationError, match=field):
        Published.model_validate({**entry, **changed})


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
