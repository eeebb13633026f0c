"""The report in a real browser (see `support.browser`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.browser import chromium

from autopeft.report.html import write_report
from autopeft.runs.folder import RunFolder

Make = Callable[..., RunFolder]
EVIL = '<script>alert(1)</script> </script><img src=x onerror=alert(2)> <a href="https://example.org">l</a>'
PLOTS = {
    *("baselines-plot", "differences", "front-plot", "history", "hypervolume", "timeline"),
    *("importances", "slice-0", "slice-1", "slice-2", "rungs-plot"),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@dataclass
class Opened:
    """A page, and everything that it said or asked for."""

    page: Any
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def check(self, file: Path) -> None:
        assert self.console == []
        assert self.requests == [file.as_uri()]


def visit(context: Any, file: Path) -> Opened:
    """Open a file, with an ear on all that it says and asks for."""
    page = context.new_page()
    found = Opened(page)
    page.on("console", lambda m: found.console.append(f"{m.type}: {m.text}"))
    page.on("pageerror", lambda e: found.console.append(f"error: {e}"))
    page.on("request", lambda r: found.requests.append(r.url))
    page.on("dialog", lambda d: (found.console.append(f"dialog: {d.message}"), d.dismiss()))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-drawn=yes]", state="attached")
    return found


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Opened]]:
    contexts = []

    def visit_anew(file: Path, *, width: int = 1280, scheme: str = "light") -> Opened:
        size = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme, offline=True))
        return visit(contexts[-1], file)

    yield visit_anew
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def report(make_run: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(trials=24), tmp_path_factory.mktemp("browser") / "report.html")


@pytest.fixture(scope="module")
def hostile(make_run: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(trials=24, words=EVIL), tmp_path_factory.mktemp("browser") / "evil.html")


@pytest.fixture(scope="module")
def empty(make_run: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(trials=0, finished=False)
    return write_report(folder, tmp_path_factory.mktemp("browser") / "empty.html")


def marks(page: Any) -> dict[str, int]:
    """For every plot, how many traces are drawn with at least one visible shape."""
    found: dict[str, int] = page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("div.plot")].map((plot) => [
            plot.id,
            [...plot.querySelectorAll(".main-svg .trace, .main-svg .bars")].filter((trace) =>
              [...trace.querySelectorAll("path")].some((path) => {
                const box = path.getBoundingClientRect();
                return box.width + box.height > 0 && path.getAttribute("d");
              })).length,
        ]))"""
    )
    return found


def traces(page: Any) -> dict[str, int]:
    """For every plot, how many traces its data has."""
    found: dict[str, int] = page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("div.plot")].map((plot) => [
            plot.id, JSON.parse(document.getElementById(plot.dataset.figure).textContent).data.length]))"""
    )
    return found


INK = (
    "getComputedStyle(document.querySelector('#history .xtick text'))"
    ".fill.match(/\\d+/g).slice(0, 3).map(Number)"
)


def assert_all_is_drawn(page: Any, width: int, scheme: str, folder: Path) -> None:
    """What must hold at any width and in either scheme; leaves a picture of the page."""
    drawn = marks(page)
    assert set(drawn) == PLOTS
    assert drawn == traces(page)
    assert all(drawn.values())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelectorAll('svg.composition-graph g.row').length") == 4
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    # Plots lie inside the page, and what they write is read on its ground.
    right = page.evaluate(
        "Math.max(...[...document.querySelectorAll('div.plot .main-svg')].map("
        "e => e.getBoundingClientRect().right))"
    )
    assert right <= width
    assert (sum(page.evaluate(INK)) > 380) == (scheme == "dark")
    shot = folder / f"report-{scheme}-{width}.png"
    page.screenshot(path=str(shot), full_page=True)
    assert shot.stat().st_size > 100_000


def settled(page: Any, expression: str) -> None:
    """Wait until an expression is true; the page's policy forbids Playwright's own way of waiting."""
    for _ in range(150):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never true: {expression}")


@pytest.fixture(scope="module")
def desk(report: Path, browser: Any) -> Iterator[Opened]:
    """The report, opened once at a desk's width."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    with closing(context):
        yield visit(context, report)


def test_every_plot_is_drawn_in_silence(desk: Opened, report: Path, tmp_path: Path) -> None:
    """Wide and narrow, light and dark; plots follow both while the page is open."""
    page = desk.page
    assert_all_is_drawn(page, 1280, "light", tmp_path)
    page.emulate_media(color_scheme="dark")
    settled(page, f"({INK}).every(c => c > 127)")
    assert_all_is_drawn(page, 1280, "dark", tmp_path)
    page.set_viewport_size({"width": 400, "height": 900})
    settled(
        page,
        "[...document.querySelectorAll('div.plot .main-svg')]"
        ".every(e => e.getBoundingClientRect().right <= 400)",
    )
    assert_all_is_drawn(page, 400, "dark", tmp_path)
    page.emulate_media(color_scheme="light")
    settled(page, f"({INK}).every(c => c < 127)")
    assert_all_is_drawn(page, 400, "light", tmp_path)
    page.set_viewport_size({"width": 1280, "height": 900})
    desk.check(report)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_draws_it_from_the_start(
    report: Path, opened: Callable[..., Opened], tmp_path: Path, scheme: str
) -> None:
    found = opened(report, width=400, scheme=scheme)
    assert_all_is_drawn(found.page, 400, scheme, tmp_path)
    found.check(report)


def column(page: Any, table: str, header: str, *, visible: bool = False) -> list[str]:
    texts: list[str] = page.evaluate(
        """([table, header, visible]) => {
            const element = document.getElementById(table);
            const names = [...element.tHead.rows[0].cells].map((c) => c.textContent);
            const index = names.indexOf(header);
            const rows = [...element.tBodies[0].rows].filter((r) => !visible || r.offsetParent !== null);
            return rows.map((r) => r.cells[index].textContent);
        }""",
        [table, header, visible],
    )
    return texts


def test_tables_sort_by_any_column_and_back(desk: Opened, report: Path) -> None:
    page = desk.page
    numbers = [int(n) for n in column(page, "trials-table", "trial")]
    assert numbers == sorted(numbers)
    button = page.locator("#trials-table thead button", has_text="select")
    header = page.locator("#trials-table thead th", has_text="select")
    for order, way in (("ascending", 1), ("descending", -1)):
        button.click()
        assert header.get_attribute("aria-sort") == order
        cells = column(page, "trials-table", "select")
        scored = [float(c) for c in cells if c != "–"]
        assert len(scored) == 18
        assert scored == sorted(scored, reverse=way < 0)
        assert cells[18:] == ["–"] * 6  # what has no score comes last, whichever way
    # Numbers sort as numbers, though they are written with separators.
    page.locator("#trials-table thead button", has_text="deployed").click()
    sizes = [int(c.replace(",", "")) for c in column(page, "trials-table", "deployed")]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 2
    assert header.get_attribute("aria-sort") == "none"
    # With the keyboard too, and by words.
    page.locator("#trials-table thead button", has_text="state").focus()
    page.keyboard.press("Enter")
    states = column(page, "trials-table", "state")
    assert states == sorted(states)
    assert len(set(states)) == 4
    desk.check(report)


def test_tables_can_be_filtered(desk: Opened, report: Path) -> None:
    page = desk.page
    page.fill("input[data-filter=trials-table]", "STOPPED")
    assert column(page, "trials-table", "state", visible=True) == ["stopped at step 20"] * 5
    assert page.inner_text("[data-count=trials-table]") == "5 of 24 trials"
    assert len(column(page, "finals-table", "state", visible=True)) == 3  # another table's
    page.fill("input[data-filter=trials-table]", "")
    assert len(column(page, "trials-table", "state", visible=True)) == 24
    desk.check(report)


def test_text_of_strangers_runs_nothing_and_links_nowhere(
    hostile: Path, opened: Callable[..., Opened]
) -> None:
    found = opened(hostile)
    page = found.page
    assert marks(page) == traces(page)
    # Labels that appear under the pointer are drawn by plotly as well.
    page.evaluate(
        """() => { for (const plot of document.querySelectorAll("div.plot"))
             for (let i = 0; i < plot.data.length; i++) {
               Plotly.Fx.hover(plot, [{curveNumber: i, pointNumber: 0}]);
             } }"""
    )
    page.wait_for_timeout(200)
    links = page.evaluate(
        "[...document.querySelectorAll('a')].map(a => a.getAttribute('href') || a.getAttribute('xlink:href'))"
    )
    assert all(link is not None and link.startswith("#") for link in links)
    assert page.evaluate("document.querySelectorAll('img, iframe, object').length") == 0
    assert page.evaluate("document.querySelectorAll('script:not([type])').length") == 2
    assert "<script>alert(1)</script>" in page.inner_text("h1 + .headline")
    assert "<script>alert(1)" in page.text_content("#importances")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    found.check(hostile)


def test_a_script_that_slipped_through_would_not_run(
    empty: Path, opened: Callable[..., Opened], tmp_path: Path
) -> None:
    """The second wall behind escaping: the policy blocks scripts, handlers and the network. (Offline the
    request would fail in any case; the browser says that it was the policy.)"""
    bad = tmp_path / "bad.html"
    text = empty.read_text(encoding="utf-8")
    inserted = '<script>window.ran = 1</script><img src="https://example.org/x.png" onerror="window.ran = 2">'
    bad.write_text(text.replace("<main>", f"<main>{inserted}"), encoding="utf-8")
    found = opened(bad)
    found.page.wait_for_timeout(200)
    assert found.page.evaluate("window.ran") is None
    for what in ("inline script", "inline event handler", "https://example.org/x.png"):
        assert any(what in line and "Content Security Policy" in line for line in found.console), what
    assert found.page.evaluate("document.querySelector('img').naturalWidth") == 0


@pytest.mark.slow
def test_forty_eight_layers_are_readable(
    make_run: Make, opened: Callable[..., Opened], tmp_path: Path
) -> None:
    file = write_report(make_run(trials=1, layers=48), tmp_path / "deep.html")
    found = opened(file, width=400)
    page = found.page
    scale = page.evaluate(
        "(() => { const e = document.querySelector('svg.composition-graph');"
        " return e.getBoundingClientRect().width / Number(e.getAttribute('width')); })()"
    )
    assert scale == pytest.approx(1.0)  # it scrolls, and does not shrink
    assert page.evaluate("document.querySelectorAll('#heat tbody tr:first-child td').length") >= 48
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    found.check(file)


@pytest.mark.slow
def test_a_run_without_anything_has_no_empty_plot(empty: Path, opened: Callable[..., Opened]) -> None:
    found = opened(empty)
    assert marks(found.page) == {}
    assert len(found.page.query_selector_all(".missing")) >= 9
    found.check(empty)
