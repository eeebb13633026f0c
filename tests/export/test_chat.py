"""A conversation keeps what was said, within what the model reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.language import save_decoder, write_chats
from transformers import AutoModelForCausalLM

import autopeft
from autopeft.assets import warn_once
from autopeft.errors import UsageError
from autopeft.recipe import Recipe
from autopeft.tasks.kinds import get_kind

RECIPE = Recipe.from_dict({"layers": [{"at": "all", "attach": ["lora"]}], "name": "r"})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("place")
    task, model = str(write_chats(folder / "chats.jsonl")), str(save_decoder(folder / "llama"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOPEFT_CACHE", str(folder / "cache"))
        return autopeft.train(
            recipe=RECIPE, task=task, model=model, steps=1, max_length=48, out=str(folder / "run")
        )


def answering(answer: str | BaseException) -> Callable[..., list[str]]:
    def generate(self: Any, model: Any, split: Any, rows: Any, how: Any, **options: Any) -> list[str]:
        words = "two" if isinstance(answer, BaseException) else answer
        if options["told"] is not None:
            options["told"](words)
        if isinstance(answer, BaseException):
            raise answer
        return [words]

    return generate


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | BaseException], None]:
    cls = type(get_kind("causal_lm").scorer)
    return lambda answer: monkeypatch.setattr(cls, "generate", answering(answer))


def test_what_was_said_is_kept_and_read(run: Any, says: Callable[..., None]) -> None:
    says("three")
    talk, pieces = autopeft.chat(run, system="be brief"), []  # type: ignore[var-annotated]
    assert talk.say("what follows two", pieces.append) == "three"
    assert pieces == ["three"]
    talk.say("is one")
    assert [m["role"] for m in talk.messages] == ["system", "user", "assistant", "user", "assistant"]
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "be brief"}]


def test_the_oldest_turns_go_and_the_system_stays(run: Any, says: Callable[..., None]) -> None:
    says("three")
    told: list[str] = []
    talk = autopeft.chat(run, system="be brief", max_length=24, notify=told.append)
    for number in ("one", "two", "three", "four"):
        talk.say(f"what follows {number}")
    assert talk.messages[0]["role"] == "system"
    assert talk.messages[-2]["content"] == "what follows four"
    assert talk.dropped > 0
    assert len(talk.messages) + 2 * talk.dropped == 9
    assert "The oldest turn was dropped: the model reads 24 tokens beside its answer." in told
    talk.say("what " * 40)
    assert any("The message is cut: the model reads 24 tokens beside its answer." in line for line in told)


def test_a_conversation_leaves_the_positions_that_its_answer_takes(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    warn_once.cache_clear()
    told: list[str] = []
    talk = autopeft.chat(run, system="be brief", max_length=64, max_new_tokens=32, notify=told.append)
    for _ in range(4):
        talk.say(f"what {'is ' * 6}follows one")
    assert "lose their beginning" not in caplog.text
    assert talk.dropped == 3
    assert told == ["The oldest turn was dropped: the model reads 32 tokens beside its answer."] * 3
    longer = autopeft.chat(run, max_length=64, max_new_tokens=4, notify=told.append)
    longer.say("what " * 50)
    assert longer.dropped == 0
    assert len(told) == 3, "60 of 64 positions are the prompt's"


def test_an_answer_that_is_stopped_stays_as_far_as_it_came(run: Any, says: Callable[..., None]) -> None:
    says(KeyboardInterrupt())
    talk = autopeft.chat(run)
    with pytest.raises(KeyboardInterrupt):
        talk.say("what follows one")
    assert talk.messages[-1] == {"role": "assistant", "content": "two"}
    says("")
    talk.say("is")
    assert len(talk.messages) == 2, "nobody answered"


def test_a_hybrid_that_was_detached_says_nothing(run: Any, says: Callable[..., None]) -> None:
    says("three")
    model = AutoModelForCausalLM.from_pretrained(run.hybrid.model.config._name_or_path)
    hybrid = autopeft.load(model, run.folder / "winner")
    talk = autopeft.chat(hybrid)
    assert talk.say("what follows two") == "three"
    hybrid.detach()
    with pytest.raises(UsageError, match="is detached from its model"):
        talk.say("what follows two")


@pytest.mark.parametrize("text", ["", "  ", "\ud800"])
def test_what_is_no_message_is_refused(run: Any, text: str) -> None:
    talk = autopeft.chat(run)
    with pytest.raises(UsageError, match="A message is a text"):
        talk.say(text)
    assert talk.messages == []


def test_more_than_the_model_reads_is_refused(run: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="max_length is at most 64"):
        autopeft.chat(run, max_length=65)
