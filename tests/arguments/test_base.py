from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest

from autopeft.arguments import NEEDED, Arguments, Option
from autopeft.errors import BudgetError, UsageError


def _three(value: Any) -> None:
    if value == 3:
        raise BudgetError("Three is not allowed.")


class Base(Arguments):
    called: ClassVar[str] = "greet"

    name: Annotated[str, Option(help="Who.")] = NEEDED
    times: Annotated[int, Option(help="How often.", least=1, check=_three)] = 1
    rate: Annotated[float | None, Option(help="How fast.", least=0.0)] = None
    words: Annotated[Sequence[str | Path], Option(help="What.")] = ()
    tone: Annotated[str, Option(help="How.", choices=lambda: ("warm", "cold"))] = "warm"
    loud: Annotated[bool, Option(help="Loud.")] = False
    where: Annotated[Literal["here", "there"], Option(help="Where.")] = "here"


class Derived(Base):
    greeting: Annotated[str | None, Option(help="Which.", after="name")] = None


def test_values_come_as_they_are_and_numpys_as_pythons() -> None:
    found = Base(name="x", times=np.int64(2), rate=np.float32(0.5), words=np.array(["a"]))
    assert (type(found.times), type(found.rate), found.words) == (int, float, ("a",))
    assert Base(name="x", words=[Path("a/b"), "c"]).words == ("a/b", "c")
    assert Base(name="x", rate=1).rate == 1.0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"name": "x", "tiems": 2}, "greet has no argument 'tiems'. Did you mean 'times'?"),
        (
            {"name": "x", "\ud800": 2},
            r"greet has no argument '\ud800'. It takes "
            "name, times, rate, words, tone, loud, where.",
        ),
        ({"name": 3}, "name is a text, but got name=3."),
        ({"name": "x", "times": "2"}, "times is a whole number of at least 1, but got times='2'."),
        ({"name": "x", "times": True}, "times is a whole number of at least 1, but got times=True."),
        ({"name": "x", "times": 0}, "times is at least 1, but got times=0."),
        ({"name": "x", "rate": float("nan")}, "rate is at least 0, but got rate=nan."),
        ({"name": "x", "words": "ab"}, "words is a list, but got words='ab'."),
        ({"name": "x", "loud": 1}, "loud is True or False, but got loud=1."),
        ({"name": "x", "where": "here!"}, "where is 'here' or 'there', but got where='here!'."),
        (
            {"name": "x", "tone": "warn"},
            "There is no tone 'warn'. Did you mean 'warm'? Allowed: 'warm' or 'cold'.",
        ),
    ],
)
def test_what_came_and_what_is_allowed(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Base(**given)
    assert str(caught.value) == says


def test_all_problems_come_at_once_one_a_line() -> None:
    with pytest.raises(UsageError) as caught:
        Base(name=1, times=0, lout=True)
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["name", "times", "greet"]


def test_an_error_of_a_check_keeps_its_class_where_it_is_alone() -> None:
    with pytest.raises(BudgetError, match="Three"):
        Base(name="x", times=3)
    with pytest.raises(UsageError, match=r"(?s)Three.*tone") as caught:
        Base(name="x", times=3, tone="hot")
    assert not isinstance(caught.value, BudgetError)


def test_what_is_needed_and_did_not_come() -> None:
    assert Base.needed() == ("name",)
    assert Base().missing() == ("name",)
    assert Base(name=None).missing() == ("name",)
    assert Base(name="x").missing() == ()


def test_a_subclass_puts_its_option_where_it_says() -> None:
    assert list(Derived.declared())[:3] == ["name", "greeting", "times"]
    derived = Derived(name="x", greeting="hi", times=2)
    assert derived.base(Base) == Base(name="x", times=2)
    assert derived.changed(times=5).times == 5
    with pytest.raises(UsageError, match="times is at least 1"):
        derived.changed(times=0)


def test_a_field_without_an_option_is_a_mistake() -> None:
    class Bare(Arguments):
        name: str = ""

    with pytest.raises(TypeError, match=r"Bare\.name needs one Option"):
        Bare.declared()


def test_a_record_reads_back() -> None:
    given = Base(name="x", words=["a"], rate=0.5)
    assert Base(**given.record()) == given
    assert Base.unlike_defaults(given.record() | {"strange": 1}) == {
        "name": "x",
        "rate": 0.5,
        "words": ("a",),
    }
