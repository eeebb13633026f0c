from __future__ import annotations

from support.evidence import evidence, minilm_spec

from autopeft.counting import Budget
from autopeft.report.recommend import recommend_sheet
from autopeft.search.portfolio.choices import rank
from autopeft.search.portfolio.evidence import Key, Setting
from autopeft.search.portfolio.recommend import Recommendation


def gain(key: Key, setting: Setting) -> float:
    return {"dora": 2.0, "lora": 0.0}.get(key.template, -1.0)


def test_the_best_are_shown_with_what_they_gain_and_plain_lora_beside_them() -> None:
    found = rank(evidence(gain, noise=0.2, seeds=1), minilm_spec(), Budget.parse("0.5%"), 500)
    assert found.reference is not None
    sheet = recommend_sheet(
        Recommendation(
            found.choices[0].fitted.recipe, found.choices, found.reference, None, False, ("Because.",),
            "autopeft", "0.5%", "minilm", None, 500,
        )
    )  # fmt: skip
    first = dict(zip(sheet.headers, sheet.rows[0], strict=True))
    assert (first["recipe"], first["size"], first["step"]) == ("dora", "10", "0.50 ×")
    assert first["gain over LoRA"].startswith("+")
    assert " to " in first["95 % interval"]
    assert first["evidence"] == "25 trainings, 5 tasks, 3 clusters"
    plain = [row for row in sheet.rows if row[-1] == "what gains are over"]
    assert len(plain) == 1
    assert len(sheet.rows) <= 9
    assert sheet.notes[-1] == "Because."
    assert "more recipes rank lower" in sheet.notes[1]
