from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.page import Page

from autopeft.errors import AutoPEFTError, UsageError
from autopeft.report.html import render_report, write_report
from autopeft.runs.folder import RunFolder

Make = Callable[..., RunFolder]
Edit = Callable[[Path, Callable[[Any], Any]], None]
EVIL = "<script>alert(1)</script> </script><img src=x onerror=alert(2)> <!-- \" ' & {{ 7 * 7 }} {% raw %}"


@pytest.fixture(scope="module")
def plain(make_run: Make) -> Page:
    return Page(render_report(make_run(trials=24)))


@pytest.fixture(scope="module")
def hostile(make_run: Make) -> Page:
    return Page(render_report(make_run(trials=24, words=EVIL)))


def test_all_sections_are_there(plain: Page) -> None:
    sections = [a["id"] for tag, a in plain.elements if tag == "section"]
    assert sections == [
        *("winner", "where", "baselines", "front", "course", "matters"),
        *("rungs", "trials", "finals", "manifest", "again"),
    ]
    links = [a["href"] for tag, a in plain.elements if tag == "a"]
    assert links == [f"#{s}" for s in sections]
    assert len(plain.ids()) == len(set(plain.ids()))
    assert not any(a.get("class") == "missing" for _, a in plain.elements)


def test_the_page_is_self_contained(plain: Page) -> None:
    """Nothing in it names another file, and its policy would not let it be fetched."""
    for tag, attributes in plain.elements:
        assert "src" not in attributes, tag
        if "href" in attributes:
            assert attributes["href"].startswith(("#", "data:"))
    assert not {"iframe", "object", "embed", "img", "form", "base"} & {tag for tag, _ in plain.elements}
    (policy,) = [a["content"] for _, a in plain.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    scripts = policy.split("script-src ")[1].split(";")[0]
    assert "unsafe" not in scripts
    assert "http" not in policy
    styles = [text for kind, text in plain.scripts if kind == "style"]
    assert styles
    assert not re.search(r"url\(|@import|http", "".join(styles))


def test_the_policy_allows_the_pages_own_scripts_and_no_other(hostile: Page) -> None:
    (policy,) = [
        a["content"] for _, a in hostile.elements if a.get("http-equiv") == "Content-Security-Policy"
    ]
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    runnable = [text for kind, text in hostile.scripts if kind == ""]
    found = {base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in runnable}
    assert found == allowed
    assert len(runnable) == 2


def test_text_of_strangers_makes_no_element(make_run: Make, hostile: Page) -> None:
    """The same elements, with the same attributes, whatever the names are."""

    def shape(page: Page) -> list[tuple[str, tuple[str, ...]]]:
        return [(tag, tuple(sorted(a))) for tag, a in page.elements]

    calm = Page(render_report(make_run(trials=24, words="calm")))
    assert shape(hostile) == shape(calm)
    assert not any(name.startswith("on") for _, a in hostile.elements for name in a)


def test_text_of_strangers_is_shown_as_it_is(hostile: Page) -> None:
    for what in (f"toy {EVIL}", f"broke down {EVIL}", f"LoRA rank 4 {EVIL}", f"finalist 20 {EVIL}"):
        assert what[:100] in hostile.text, what
    assert "49" not in hostile.text.split("{{")[1][:12]


def test_data_of_plots_is_json(hostile: Page) -> None:
    data = [text for kind, text in hostile.scripts if kind == "application/json"]
    places = [a for _, a in hostile.elements if a.get("class") == "plot"]
    assert len(data) == len(places) >= 9
    for text in data:
        found = json.loads(text)
        assert found["data"]
        assert "<" not in text


def test_every_trial_has_a_row_with_its_recipe(plain: Page) -> None:
    rows = [a["data-state"] for tag, a in plain.elements if tag == "tr" and "data-state" in a]
    assert len(rows) == 24 + 3
    assert rows.count("stopped") == 5
    assert plain.text.count("prefix_tuning: {length: 3}") == 24 + 3 + 1  # and the winner's


def test_a_run_that_is_not_finished(make_run: Make) -> None:
    page = Page(render_report(make_run(trials=7, finished=False)))
    assert "The best so far: trial 4" in page.text
    assert "1 not ended" in page.text
    assert "No baseline" in page.text
    assert any(tag == "svg" for tag, _ in page.elements)


def test_a_run_with_nothing_but_a_manifest(make_run: Make) -> None:
    folder = make_run(trials=0, finished=False)
    for path in folder.path.iterdir():
        if path.name != "manifest.json":
            path.unlink()
    page = Page(render_report(folder))
    missing = [a for _, a in page.elements if a.get("class") == "missing"]
    assert len(missing) == 9
    assert not any(a.get("class") == "plot" for _, a in page.elements)
    assert "This run has no journal.log." in page.text


def test_a_strategy_without_a_study_of_optunas(make_run: Make) -> None:
    folder = make_run()
    whole = Page(render_report(folder))
    manifest = folder.manifest()
    folder.write_json(
        "manifest.json", manifest | {"arguments": {**manifest["arguments"], "strategy": "mine"}}
    )
    with_journal = Page(render_report(folder))
    folder.journal.unlink()
    page = Page(render_report(folder))
    assert "'mine' keeps no study" in page.text
    assert "no journal.log" not in page.text
    for text in ("Browse the study", "optuna-dashboard"):
        assert text in whole.text
        assert text in with_journal.text
        assert text not in page.text
    assert "strategy mine sampler" in " ".join(page.text.split())
    assert "strategy" not in whole.text
    assert "--strategy mine" in page.text
    drawn = [
        [a["id"] for _, a in p.elements if a.get("class") == "plot"] for p in (whole, with_journal, page)
    ]
    assert drawn[0] == drawn[1]
    studied = {"history", "timeline", "importances"}
    assert studied < set(drawn[0])
    assert set(drawn[2]) == {
        name for name in drawn[0] if name not in studied and not name.startswith(("slice", "rungs"))
    }


@pytest.mark.parametrize("value", [None, "x", 7, [], {}, [[]], {"a": {"a": {"a": {"a": [1]}}}}])
def test_a_manifest_of_any_content_has_a_page(make_run: Make, value: Any) -> None:
    folder = make_run(trials=2, finished=False)
    keys = ("task", "model", "budget", "arguments", "data", "backbone", "limits", "effort", "training")
    folder.write_json("manifest.json", dict.fromkeys((*keys, "seed", "created", "notice"), value))
    assert "How to reproduce" in Page(render_report(folder)).text


@pytest.mark.parametrize("value", [None, "x", 7, [], {}, [[]], [{}]])
def test_a_result_of_any_content_has_a_page(make_run: Make, value: Any) -> None:
    folder = make_run(trials=2)
    keys = ("counts", "number", "metric", "select", "test", "recipe", "baselines", "comparisons", "notice")
    more = ("hypervolume", "selection_bias", "search_score", "seconds", "interrupted")
    folder.write_json("result.json", dict.fromkeys((*keys, *more), value) | {"there": True})
    assert "How to reproduce" in Page(render_report(folder)).text


def test_a_backbone_that_is_not_here_costs_the_drawing_alone(make_run: Make, edit: Edit) -> None:
    folder = make_run(trials=12)
    edit(folder.path / "manifest.json", lambda m: m | {"model": "./nowhere/at-all"})
    page = Page(render_report(folder))
    assert "The graph cannot be drawn here" in page.text
    assert "--model" in page.text
    assert "lora:" in page.text  # the recipe is there
    assert not any(tag == "svg" for tag, _ in page.elements)


def test_the_backbone_can_be_named_and_must_be_the_same(make_run: Make, edit: Edit) -> None:
    folder, other = make_run(trials=2), make_run(trials=2, layers=5)
    here, elsewhere = folder.manifest()["model"], other.manifest()["model"]
    edit(folder.path / "manifest.json", lambda m: m | {"model": "./nowhere/at-all"})
    assert any(tag == "svg" for tag, _ in Page(render_report(folder, model=here)).elements)
    page = Page(render_report(folder, model=elsewhere))
    assert not any(tag == "svg" for tag, _ in page.elements)
    assert "but that of the run had" in page.text


def test_a_fixed_recipe(make_run: Make, edit: Edit) -> None:
    folder = make_run(trials=0)
    edit(folder.path / "manifest.json", lambda m: m | {"kind": "train", "budget": None})
    counts = folder.result()["counts"]
    recipe = folder.result()["recipe"]
    result = {"kind": "train", "recipe": recipe, "counts": counts, "select_mean": 0.6, "test_mean": 0.55}
    folder.write_json("result.json", result)
    page = Page(render_report(folder))
    assert "scored accuracy 0.5500 on test, with one seed" in page.text
    assert "fixed recipe" in page.text
    assert any(tag == "svg" for tag, _ in page.elements)


def test_half_a_surrogate_pair_can_be_written(make_run: Make, edit: Edit, tmp_path: Path) -> None:
    folder = make_run(trials=1)
    (folder.path / "manifest.json").write_text(
        json.dumps(folder.manifest() | {"task": "x\ud83d", "data": {"name": "y\ud83d\u202e"}})
    )
    out = write_report(folder, tmp_path / "out.html")
    assert "y��" in out.read_text(encoding="utf-8")


def test_where_it_is_written(make_run: Make, tmp_path: Path) -> None:
    folder = make_run(trials=1)
    assert write_report(folder) == folder.path / "report.html"
    assert (folder.path / "report.html").stat().st_size > 4_000_000  # plotly.js is inside
    with pytest.raises(UsageError, match="is a folder; name a file"):
        write_report(folder, tmp_path)
    with pytest.raises(UsageError, match="There is no folder"):
        write_report(folder, tmp_path / "no" / "such" / "folder.html")
    with pytest.raises(AutoPEFTError, match="Cannot write"):
        write_report(folder, folder.path / "report.html" / "page.html")


def test_plotly_is_there_once(make_run: Make) -> None:
    text = render_report(make_run(trials=12))
    assert len(re.findall(r"plotly\.js v\d", text)) == 1


def sample(**changes: Any) -> dict[str, Any]:
    plain = {"split": "test", "row": 4, "prompt": "what is 2 + 3?", "expected": "5", "written": "6"}
    return {**plain, "right": False, "value": 0.0, **changes}


def test_samples_of_answers_are_shown(make_run: Make) -> None:
    made = [sample(), sample(row=7, written=" 5\n", right=True, value=1.0), sample(row=9, written="")]
    page = Page(render_report(make_run(trials=1, result={"samples": made, "metric": "exact_match"})))
    assert ("section", {"id": "answers"}) in [(tag, a) for tag, a in page.elements]
    assert "#answers" in [a.get("href") for tag, a in page.elements if tag == "a"]
    for text in ("test 5", "what is 2 + 3?", "another answer, exact_match 0", "right, exact_match 1"):
        assert text in page.text
    assert "(nothing)" in page.text
    assert "the three that exact_match values most" in page.text


def test_samples_of_strangers_make_no_element(make_run: Make) -> None:
    keys = ("split", "prompt", "expected", "written")
    shapes = []
    for words in ("calm", f"{EVIL} \x1b[31m \u202e \ud83d \x00"):
        made = sample(**dict.fromkeys(keys, words))
        page = Page(render_report(make_run(trials=1, result={"samples": [made], "metric": "rouge_l"})))
        shapes.append([(tag, tuple(sorted(a))) for tag, a in page.elements])
    assert shapes[0] == shapes[1]
    assert EVIL[:60] in page.text
    assert not set("\x1b\u202e\x00") & set(page.text)
    long = make_run(trials=1, result={"samples": [sample(written="x" * 10**5)] * 50})
    assert render_report(long).count("x" * 1000) < 100
