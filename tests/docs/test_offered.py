"""Pages of methods say whether a search tries them by default, and why not."""

from __future__ import annotations

from generate.offered import LEFT_OUT, offered, offered_in_words, why_not

from autopeft.method import method_names


def test_each_method_is_offered_or_its_page_says_why_not() -> None:
    names = set(method_names())
    assert {"lora", "serial_adapter", "prompt_tuning", "krona"} < offered() < names
    assert "prefix_tuning" not in offered(), "a comment names it"
    assert not offered() & LEFT_OUT.keys()
    for name in names - offered():
        said = offered_in_words(name)
        assert said.endswith(f"{why_not(name)}.")
        assert (name in LEFT_OUT) == (why_not(name) == LEFT_OUT.get(name)), "said once"
    assert LEFT_OUT.keys() <= names
