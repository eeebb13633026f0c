"""What is looked for in what commands print and write is found there."""

from __future__ import annotations

import pytest

from autopeft.errors import UsageError
from fuzz import products, weights
from fuzz.mutate import bytes_of
from fuzz.products import check_markdown, check_page, check_text, command

CARD = "---\ntags: [x]\n---\n\n# Title\n\n\\[a\\](b) &lt;b&gt;\n\n```yaml\nname: <b> # http://x.org\n```\n"
PAGE = "<html><script>1</script><script>2</script><a href='#x'>&lt;script&gt;</a></html>"


def test_sound_products_pass() -> None:
    check_text("one line\n\tand é 名前", "stdout")
    check_markdown(CARD, "card")
    check_markdown(CARD + "\n<!-- card of autopeft export, sha256 of what stands above: 0a1b -->\n", "card")
    check_markdown("# Title without front matter\n", "card")
    check_page(PAGE, "page")
    assert "recipe" in command("show", "--help")


@pytest.mark.parametrize("text", ["\x1b[31m", "\x9b2J", "\u202e", "a\rb", "\x07", "\ud800"])
def test_what_a_terminal_acts_on_is_found(text: str) -> None:
    for check, around in ((check_text, ""), (check_markdown, CARD), (check_page, PAGE)):
        with pytest.raises(AssertionError, match="holds"):
            check(around + text, "x")


@pytest.mark.parametrize(
    "text", ["<b>", "<script>", "[a](javascript:0)", "![a](b)", "see https://x.org", "<!-- mine -->", "# Two"]
)
def test_markup_in_a_card_is_found(text: str) -> None:
    with pytest.raises(AssertionError, match=r"holds|titles"):
        check_markdown(CARD + "\n" + text + "\n", "x")


@pytest.mark.parametrize(
    "text",
    [
        "<script>3</script>",
        "<img>",
        "<p onload='x'>",
        "<p src='x'>",
        "<a href='https://x.org'>",
        "<form>",
        "<iframe>",
    ],
)
def test_elements_in_a_report_are_found(text: str) -> None:
    with pytest.raises(AssertionError):
        check_page(PAGE + text, "x")


def test_a_command_raises_its_errors_and_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError):
        command("show", "no-such-recipe")
    monkeypatch.setattr(products, "printable", lambda text, keep: "")
    with pytest.raises(AssertionError, match="stdout holds"):
        command("methods")


def test_a_changed_header_stands_over_the_same_bytes() -> None:
    text = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    file = len(text).to_bytes(8, "little") + text + b"\0\0\x80?"
    found = weights.changed_header(file, lambda header: header["a"].update(dtype="F4"))
    size = int.from_bytes(found[:8], "little")
    assert found[8 : 8 + size] == bytes_of(text.decode().replace("F32", "F4"))
    assert found[8 + size :] == b"\0\0\x80?"
