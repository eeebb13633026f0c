"""`autopeft.recommend`: what is asked, what is left out, and what it ends with."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
from support.evidence import evidence
from support.language import save_decoder
from support.saved_model import save_backbone, write_reviews
from support.tiny import tiny_config
from transformers import AutoModel, PegasusConfig

import autopeft
from autopeft.errors import UsageError
from autopeft.recipe import Recipe
from autopeft.recipe.pooling import pooling_of
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.portfolio import recommend as module
from autopeft.search.portfolio.evidence import Evidence, Key, Setting
from autopeft.tasks import load_task
from autopeft.training.pooling import PoolingFinding


def gain(key: Key, setting: Setting) -> float:
    if setting.task.startswith("trec") and key.template == "krona":
        return 5.0
    return {"dora": 2.0, "krona": -1.0}.get(key.template, 0.0)


@pytest.fixture(scope="module")
def known() -> Evidence:
    return evidence(gain, noise=0.2, seeds=1)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, known: Evidence, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "shipped_evidence", lambda: known)
    return {"model": str(save_backbone(tmp_path / "model")), "budget": "5%"}


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of a tiny backbone are those of a large one: its budgets are seen as a hundredth."""
    from autopeft.search.portfolio import estimates

    own = estimates.nearness
    monkeypatch.setattr(estimates, "nearness", lambda share, rows, t, seen: own(share, rows, scaled(t), seen))


def scaled(target: Any) -> Any:
    from autopeft.search.portfolio.estimates import Target

    return Target(target.share / 10, target.rows)


@pytest.mark.usefixtures("near")
def test_without_a_task_it_says_what_is_best_over_all(place: dict[str, Any]) -> None:
    found = autopeft.recommend(**place, rows=500)
    assert found.reason is None
    assert not found.abstained
    assert found.recipe.methods == ("dora",)
    assert found.first.estimate is not None
    assert found.first.estimate.low < found.first.estimate.gain < found.first.estimate.high
    assert found.alternatives
    assert found.alternatives[0] == found.choices[1].fitted.recipe
    assert any("No training was on" in line for line in found.why)
    told = found.to_dict()
    assert told["choices"][0]["estimate"]["clusters"] == 3
    assert sum(choice["reference"] for choice in told["choices"]) == 1
    assert Recipe.from_dict(told["recipe"]) == found.recipe


@pytest.mark.slow
@pytest.mark.usefixtures("near")
def test_rows_that_share_texts_with_the_task_are_no_evidence(place: dict[str, Any]) -> None:
    found = autopeft.recommend(**place, task="trec")
    krona = next(c for c in found.choices if c.key.template == "krona")
    assert krona.estimate is not None
    assert krona.estimate.observed < 0
    assert any("share texts" in line and "trec" in line for line in found.why)
    assert "trec" not in found.why[0]
    also = autopeft.recommend(**place, rows=500, leave_out=["trec"])
    assert any("Left out" in line and "trec" in line for line in also.why)
    assert next(c for c in also.choices if c.key.template == "krona").estimate.observed < 0  # type: ignore[union-attr]


@pytest.mark.usefixtures("near")
def test_what_has_to_be_served_is_ranked_and_searched_on_so(place: dict[str, Any]) -> None:
    found = autopeft.recommend(**place, rows=500, serve="peft")
    assert all(c.fitted.recipe.methods != ("krona",) for c in found.choices)
    assert any("served as peft" in line for line in found.why)
    words = shlex.split(found.command)
    assert words[words.index("--serve") + 1] == "peft"
    with pytest.raises(UsageError, match="served as vllm"):
        autopeft.recommend(**place, rows=500, serve="vllm")


def test_a_decoder_without_a_task_has_no_head(place: dict[str, Any], tmp_path: Path) -> None:

    model = str(save_decoder(tmp_path / "llama", vocabulary=2000))
    found = autopeft.recommend(model=model, budget="5%", serve="vllm")
    assert found.recipe.methods == ("lora",)
    assert found.abstained, "all evidence is of texts that are sorted"
    assert "causal_lm" in str(found.reason)


def test_the_hidden_layers_of_a_head_learn_more_slowly(place: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config("distilbert")
    AutoModel.from_config(config).save_pretrained(tmp_path / "distilbert")
    model = {"model": str(tmp_path / "distilbert"), "budget": "20%"}
    found = [autopeft.recommend(**place, rows=500), autopeft.recommend(**model, rows=500)]
    assert ["head.hidden" in f.recipe.training.groups for f in found] == [False, True]
    assert found[1].recipe.training.settings("head", part="hidden").learning_rate == 3e-4


PEGASUS = PegasusConfig(
    vocab_size=200, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48, decoder_ffn_dim=48,
    encoder_attention_heads=4, decoder_attention_heads=4,
)  # fmt: skip


@pytest.mark.parametrize("config", [tiny_config("vit"), PEGASUS], ids=["vit", "pegasus"])
def test_other_backbones_have_recipes_as_well(config: Any, tmp_path: Path) -> None:
    """Transformers has no class that sorts rows by Pegasus."""
    AutoModel.from_config(config).save_pretrained(tmp_path / "other")
    found = autopeft.recommend(model=str(tmp_path / "other"), budget="20%", rows=500)
    assert found.recipe.entries()
    if config.model_type == "vit":
        assert "image_classification" in str(found.reason)


@pytest.mark.usefixtures("near")
def test_lora_that_the_evidence_finds_best_is_a_recommendation(
    place: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    worse = evidence(lambda key, setting: 0.0 if key.template == "lora" else -2.0, noise=0.2, seeds=1)
    monkeypatch.setattr(module, "shipped_evidence", lambda: worse)
    found = autopeft.recommend(**place, rows=500)
    assert found.recipe.methods == ("lora",)
    assert "shows no other recipe to be better" in str(found.reason)
    assert not found.abstained
    assert (found.to_dict()["reason"], found.to_dict()["abstained"]) == (found.reason, False)


def test_a_stand_in_leaves_out_its_own_texts() -> None:
    task = load_task("movie-sentences")
    assert module.own_clusters("sst2", task) == ("rotten-tomatoes",)
    assert module.own_clusters(None, None) == ()
    assert module.own_clusters("mine.csv", None) == ()


def test_far_from_all_evidence_lora_is_recommended_and_named(place: dict[str, Any]) -> None:
    found = autopeft.recommend(**{**place, "budget": "60%"})
    assert found.abstained
    assert "no evidence from two clusters" in str(found.reason)
    assert found.recipe.methods == ("lora",)
    assert found.recipe.training.learning_rate == 1.5e-3


@pytest.mark.usefixtures("near")
def test_another_kind_of_task_has_no_evidence(place: dict[str, Any], tmp_path: Path) -> None:
    rows = "".join(f"film {'good ' * (i % 9)},{i / 7:.3f}\n" for i in range(80))
    (tmp_path / "numbers.csv").write_text("text,label\n" + rows)
    found = autopeft.recommend(**place, task=str(tmp_path / "numbers.csv"), kind="regression")
    assert "regression" in str(found.reason)
    assert found.abstained
    assert found.recipe.methods == ("lora",)


# --- what it ends with ---


def test_the_command_searches_on_from_there(place: dict[str, Any], tmp_path: Path) -> None:
    data = write_reviews(tmp_path / "my data.csv")
    found = autopeft.recommend(
        **place, task=str(data), text="body", label="verdict", out=tmp_path / "first.yaml"
    )
    words = shlex.split(found.command)
    assert words[:2] == ["autopeft", "search"]
    given = dict(zip(words[2::2], words[3::2], strict=True))
    assert given == {
        "--budget": "5%", "--task": str(data), "--model": place["model"], "--text": "body",
        "--label": "verdict", "--from": "first.yaml",
    }  # fmt: skip
    assert Recipe.load(tmp_path / "first.yaml") == found.recipe
    assert found.file == tmp_path / "first.yaml"
    SearchArguments(task=str(data), budget="5%", warm_start=("first.yaml",))


def test_rows_in_memory_end_with_a_call(place: dict[str, Any], tmp_path: Path) -> None:
    frame = pandas.read_csv(write_reviews(tmp_path / "data.csv"))
    found = autopeft.recommend(**place, task=frame, text="body", label="verdict")
    assert found.command.startswith("autopeft.search(")
    assert "task=rows" in found.command
    compile(found.command, "command", "eval")


def test_heads_read_what_the_recorded_tasks_found_better(
    place: dict[str, Any], known: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pooling_of(autopeft.recommend(**place).recipe).entries() == []
    settings = [s._replace(model=place["model"]) for s in known.trainings]
    better = replace(known, readings=dict.fromkeys(settings[:3], (0.6, 0.5)))
    monkeypatch.setattr(module, "shipped_evidence", lambda: better)
    found = autopeft.recommend(**place)
    for recipe in (found.recipe, found.reference.fitted.recipe, *found.alternatives):
        assert pooling_of(recipe).methods == ("mean_pooling",)
    assert any("in 3 of 3 recorded settings" in line for line in found.why)
    assert pooling_of(autopeft.recommend(**place, serve="peft").recipe).entries() == []


@pytest.mark.usefixtures("near")
def test_it_says_where_heads_of_the_recorded_trainings_read_otherwise(
    place: dict[str, Any], known: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(model: str, **more: Any) -> bool:
        """Whether it says so, with readings of a model in the evidence that were better with the mean."""
        readings = {s._replace(model=model): (0.6, 0.5) for s in known.trainings}
        found = replace(known, readings=readings)
        monkeypatch.setattr(module, "shipped_evidence", lambda: found)
        return module._RECORDED in autopeft.recommend(**{**place, **more}).why

    (recorded,) = known.models
    assert told(recorded), "another model: its heads read what it gives them"
    assert told(recorded, serve="peft")
    assert not told(place["model"]), "these trainings' heads read what the model gives them"
    assert not told(recorded, budget="60%"), "there are no gains"
    monkeypatch.setattr(Evidence, "pooling", lambda *_: "mean")
    assert not told(recorded)


def test_of_a_task_a_probe_says_what_heads_read(
    place: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = PoolingFinding("mean", own=0.6, mean=0.5)
    monkeypatch.setattr(module, "find_pooling", lambda *_, **__: finding)
    asked = {**place, "task": str(write_reviews(tmp_path / "data.csv")), "text": "body", "label": "verdict"}
    found = autopeft.recommend(**asked)
    assert pooling_of(found.recipe).methods == ("mean_pooling",)
    assert finding.sentence() in found.why
    monkeypatch.setattr(module, "find_pooling", lambda *_, **__: None)
    assert pooling_of(autopeft.recommend(**asked).recipe).entries() == []


def test_a_probe_that_fails_ends_no_recommendation(
    place: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("The size of tensor a must match.")

    monkeypatch.setattr(module, "find_pooling", failing)
    asked = {**place, "task": str(write_reviews(tmp_path / "data.csv")), "text": "body", "label": "verdict"}
    found = autopeft.recommend(**asked)
    assert pooling_of(found.recipe).entries() == []
    told = "The head reads what the model gives it: a probe failed (The size of tensor a must match)."
    assert told in found.why


def test_fewer_rows_than_the_task_has_are_all_that_is_looked_at(
    place: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        module, "find_pooling", lambda source, task, *_, **__: seen.append(len(task.splits["train"]))
    )
    data = str(write_reviews(tmp_path / "data.csv"))
    asked = {**place, "task": data, "text": "body", "label": "verdict"}
    found = autopeft.recommend(**asked, rows=20)
    assert seen == [20]
    assert "--train-rows 20" in found.command
    more = autopeft.recommend(**asked, rows=5_000)
    assert seen[1] > 20
    assert "--train-rows" not in more.command


def test_a_kind_of_task_without_evidence_may_be_named_without_a_task(place: dict[str, Any]) -> None:
    found = autopeft.recommend(**place, rows=500, kind="regression")
    assert found.abstained
    assert found.reason is not None
    assert "regression" in found.reason
    assert "--kind regression" in found.command
    assert "classification" not in str(autopeft.recommend(**place, rows=500, kind="classification").reason)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"leave_out": ["trek"]}, r"'trek'.*'trec'"),
        ({"budget": 5}, "nothing to recommend"),
        ({"kind": "poetry"}, "There is no kind"),
        ({"text": "body", "drop_empty": True}, r"--text, --drop-empty .* name --task"),
    ],
)
def test_what_cannot_be_recommended_for_is_refused(
    place: dict[str, Any], given: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        autopeft.recommend(**{**place, **given})


def test_where_clusters_are_left_out_the_search_begins_without_their_portfolio(place: dict[str, Any]) -> None:
    assert "--no-portfolio" not in autopeft.recommend(**place).command
    assert "--no-portfolio" in shlex.split(autopeft.recommend(**place, leave_out=["trec"]).command)


def test_a_file_that_is_there_is_kept(place: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text("mine")
    for out, why in (
        ("there.yaml", "is there already"),
        ("a.txt", "written as .yaml"),
        ("no/a.yaml", "no folder"),
    ):
        with pytest.raises(UsageError, match=why):
            autopeft.recommend(**place, out=tmp_path / out)
    assert (tmp_path / "there.yaml").read_text() == "mine"
