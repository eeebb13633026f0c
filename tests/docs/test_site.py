"""The built site: it is built strictly, asks the network for nothing, and works in a real browser.

It needs the extra `docs`. `AUTOPEFT_SITE` names a site that is built already; without it the test builds one.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from support.browser import chromium
from support.documents import ROOT

# `.ci/run` builds the site and runs these by themselves.
pytestmark = pytest.mark.slow

WIDE, NARROW = 1400, 420
SEEN = (
    *("index.html", "tutorials/first-search.html", "how-to/recipes.html", "concepts/counts.html"),
    *("methods/index.html", "methods/lora.html", "methods/compositions.html", "recipes/unipelt.html"),
    *(
        "results/each-method-alone.html",
        "api/functions.html",
        "reference/commands/search.html",
        "glossary.html",
    ),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = os.environ.get("AUTOPEFT_SITE")
    if built:
        return (ROOT / built).resolve()
    for name in ("mkdocs", "material", "mkdocstrings", "mkdocs_gen_files", "mkdocs_literate_nav"):
        pytest.importorskip(name, reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


class Fetched(HTMLParser):
    """What a browser would fetch by itself for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {k: v for k, v in attrs if v}
        if "id" in given:
            self.ids.add(given["id"])
        if "src" in given:
            self.found.append(given["src"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "prev", "next", "alternate"):
            self.found.append(given.get("href", ""))


def read(page: Path) -> Fetched:
    parser = Fetched()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        outside = [url for url in read(page).found if urlsplit(url).scheme or url.startswith("//")]
        assert outside == [], page
    styles = "".join(p.read_text(encoding="utf-8") for p in site.rglob("*.css"))
    assert re.findall(r"url\(\s*['\"]?(?:https?:)?//[^)]*\)|@import[^;]*//", styles) == []


def test_links_between_pages_hold(site: Path) -> None:
    """MkDocs checks those in Markdown; this reads those in HTML as well, anchors included."""
    pages = {page: read(page) for page in site.rglob("*.html")}
    missing = []
    for page, parser in pages.items():
        if page.name == "404.html":  # its links are from the root of a server
            continue
        for link in parser.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            anchor = unquote(parts.fragment)
            if target.is_dir():
                target /= "index.html"
            known = target in pages and (not anchor or anchor.startswith("__") or anchor in pages[target].ids)
            if not known and not (target.suffix != ".html" and target.is_file()):
                missing.append(f"{page.relative_to(site)}: {link}")
    assert missing == []


def test_search_knows_methods_commands_and_functions(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    titles = {entry["location"].partition("#")[0]: entry["title"] for entry in reversed(index["docs"])}
    assert titles["methods/lora.html"] == "lora"
    assert titles["reference/commands/export.html"] == "autopeft export"
    text = " ".join(entry["text"] for entry in index["docs"])
    assert "{arguments}" not in text  # but what `autopeft.search` declares


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """The address of a static server that does nothing but hand out files."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


_PATIENCE = 180_000  # milliseconds; a slow machine is no error


@dataclass
class Opened:
    """A page, and everything that it said or asked for."""

    page: Any
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def go(self, address: str) -> None:
        self.page.goto(address, timeout=_PATIENCE)
        self.page.wait_for_load_state("networkidle", timeout=_PATIENCE)


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Opened]]:
    contexts = []

    def make(width: int, scheme: str = "light") -> Opened:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        found = Opened(context.new_page())
        found.page.on("console", lambda m: found.console.append(f"{m.type}: {m.text}"))
        found.page.on("pageerror", lambda e: found.console.append(f"error: {e}"))
        found.page.on("request", lambda r: found.requests.append(r.url))
        return found

    yield make
    for context in contexts:
        context.close()


@pytest.mark.parametrize(
    ("width", "scheme"), [pytest.param(WIDE, "light", marks=pytest.mark.slow), (NARROW, "dark")]
)
def test_pages_open_in_silence_and_fit(
    site: Path, opened: Callable[..., Opened], tmp_path: Path, width: int, scheme: str
) -> None:
    """From disk; wide tables and drawings scroll inside their frames, the page itself does not."""
    found = opened(width, scheme)
    for name in SEEN:
        found.go((site / name).as_uri())
        assert found.page.evaluate("document.documentElement.scrollWidth") <= width, name
        right = found.page.evaluate(
            "Math.max(0, ...[...document.querySelectorAll('figure.graph')]"
            ".map(e => e.getBoundingClientRect().right))"
        )
        assert right <= width, name
        found.page.screenshot(path=str(tmp_path / f"{name.replace('/', '-')}-{width}.png"))
    assert found.console == []
    assert {urlsplit(url).scheme for url in found.requests} <= {"file", "data", "blob"}
    shots = [p.stat().st_size for p in tmp_path.iterdir()]
    assert len(shots) == len(SEEN)
    assert min(shots) > 10_000


INK = """() => {
  const parts = (color) => color.match(/[\\d.]+/g).slice(0, 3).map(Number)
  const lightness = (element, what) => parts(getComputedStyle(element)[what]).reduce((a, b) => a + b) / 765
  const svg = document.querySelector("figure.graph svg")
  const box = svg.getBoundingClientRect()
  return {
    label: lightness(svg.querySelector("text.label"), "fill"),
    chip: lightness(svg.querySelector("text.chip-name"), "fill"),
    ground: getComputedStyle(svg.querySelector("rect.ground")).fill,
    page: lightness(document.body, "backgroundColor"),
    scale: box.width / svg.viewBox.baseVal.width,
  }
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_drawing_is_readable_on_a_telephone_in_either_scheme(
    site: Path, opened: Callable[..., Opened], scheme: str
) -> None:
    found = opened(NARROW, scheme)
    for name in ("methods/lora.html", "recipes/unipelt.html"):
        found.go((site / name).as_uri())
        seen = found.page.evaluate(INK)
        assert seen["scale"] == pytest.approx(1.0)  # it scrolls, and does not shrink
        assert (seen["page"] < 0.5) == (scheme == "dark")
        assert seen["ground"] == "none"  # chips are half-transparent, so that the page is the ground
        assert abs(seen["label"] - seen["page"]) > 0.5
        assert abs(seen["chip"] - seen["page"]) > 0.5


@pytest.mark.parametrize("where", ["disk", "server"])
def test_search_finds_and_leads_there(
    site: Path, served: str, opened: Callable[..., Opened], where: str
) -> None:
    found = opened(WIDE)
    found.go((site / "index.html").as_uri() if where == "disk" else served)
    page = found.page
    page.click("input.md-search__input")
    page.keyboard.type("moslora")
    link = page.locator(".md-search-result__link", has_text="moslora").first
    link.wait_for(timeout=20_000)
    link.click()
    page.wait_for_url("**/methods/moslora.html*")
    assert page.inner_text("h1").startswith("moslora")
    assert found.console == []
    assert {urlsplit(url).netloc for url in found.requests} <= {"", urlsplit(served).netloc}
