"""How things show themselves in Python: figures as text, one line for a `repr`, a small box for a notebook.

A box is HTML that stands alone: its styles are inline, it takes the page's own colours and so suits light and
dark notebooks, and every text in it is escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Iterable, Sequence

__all__ = ["box", "counted", "folded", "mean_sd", "number", "percent", "score", "short", "size", "table"]

_SHOWN, _LONGEST = 200, 20_000
_BOX = (
    "display:inline-block;max-width:100%;box-sizing:border-box;overflow:auto;padding:.5em .8em;color:inherit;"
    "border:1px solid rgba(128,128,128,.45);border-radius:6px;font:13px/1.45 sans-serif;text-align:left"
)
_TABLE = "border-collapse:collapse;border:0;margin:.35em 0;color:inherit;font:inherit"
_ROW = "background:none;border:0"
_RULE = "border-bottom:1px solid rgba(128,128,128,.45)"
_TEXT = "max-height:24em;overflow:auto;margin:.35em 0;color:inherit;background:none;font:12px/1.4 monospace"


def number(value: float | None) -> str:
    """A count with thousands separators; `–` for `None`, `unbounded` for infinity."""
    if value is None:
        return "–"
    return "unbounded" if math.isinf(value) else f"{int(value):,}"


def counted(count: int, what: str) -> str:
    """`1 seed`, `3 seeds`, `1,200 rows`: how many there are of what takes an s in the plural."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def percent(share: float | None, digits: int = 3) -> str:
    """A fraction as a percentage; cut, never rounded up, so that a share under a limit reads so."""
    if share is None or not math.isfinite(share):
        return "–"
    step = 10.0**digits
    return f"{math.floor(share * 100 * step + 1e-9) / step:.{digits}f} %"


def score(value: float | None) -> str:
    """A score in its natural unit with four digits; `–` where there is none or it is not finite."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def mean_sd(values: Sequence[float]) -> str:
    """`0.8123 ± 0.0041` (sample standard deviation) of several seeds; a single seed says that it is one."""
    if not values:
        return "–"
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.4f} (one seed)"
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return f"{mean:.4f} ± {sd:.4f}"


def size(deployed: float | None, share: float | None) -> str:
    """`113,566 deployed parameters, 0.499 % of the backbone`."""
    return f"{number(deployed)} deployed parameters, {percent(share)} of the backbone"


def short(text: object, most: int = _SHOWN) -> str:
    """Foreign text on one line of at most `most` characters; what cannot be printed becomes `�`."""
    line = "".join(c if c.isprintable() else "�" for c in " ".join(str(text).split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def _escaped(text: object, most: int = _SHOWN) -> str:
    return html.escape(short(text, most), quote=True)


def box(title: object, *parts: str, note: object = "") -> str:
    """A box with a title, a note beside it, and parts below it: `table`, `folded`, or HTML of one's own."""
    beside = f' <span style="opacity:.75">{_escaped(note)}</span>' if note else ""
    return f'<div style="{_BOX}"><div><b>{_escaped(title)}</b>{beside}</div>{"".join(parts)}</div>'


def table(
    headers: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    right: Collection[int] = (),
    most: int = 12,
) -> str:
    """A table of texts.

    Args:
        headers: none for rows whose first text names the others.
        right: columns that are set flush right, by index.
        most: rows that are shown; a line says how many more there are.
    """
    listed = list(rows)

    def row(texts: Sequence[object], tag: str, more: str = "") -> str:
        made = []
        for i, text in enumerate(texts):
            side = "right" if i in right else "left"
            style = f"padding:.1em 1em .1em 0;border:0;text-align:{side};vertical-align:top;{more}"
            made.append(f'<{tag} style="{style}">{_escaped(text)}</{tag}>')
        return f'<tr style="{_ROW}">{"".join(made)}</tr>'

    lines = [row(headers, "th", f"{_RULE};font-weight:600")] if headers else []
    lines += [row(texts, "td") for texts in listed[:most]]
    left = len(listed) - most
    after = f'<div style="opacity:.75">… and {left:,} more</div>' if left > 0 else ""
    return f'<table style="{_TABLE}">{"".join(lines)}</table>{after}'


def folded(summary: object, text: str) -> str:
    """A text of several lines that is shown once its summary is clicked."""
    seen = "".join(c if c.isprintable() or c == "\n" else "�" for c in text[:_LONGEST])
    cut = "\n…" if len(text) > _LONGEST else ""
    inside = html.escape(seen.rstrip("\n") + cut, quote=True)
    return f'<details><summary>{_escaped(summary)}</summary><pre style="{_TEXT}">{inside}</pre></details>'
