"""A real browser for tests: headless Chromium, driven by Playwright.

Without a browser the tests that need one are skipped with a reason, unless `AUTOPEFT_NEEDS_BROWSER=1` says
that there must be one; then they fail. `AUTOPEFT_BROWSER` names the executable where it is not on the path.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest

__all__ = ["chromium"]

NEEDED = os.environ.get("AUTOPEFT_NEEDS_BROWSER", "") not in ("", "0")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str | None:
    named = os.environ.get("AUTOPEFT_BROWSER")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


def absent(reason: str) -> NoReturn:
    if NEEDED:
        pytest.fail(f"{reason}, and AUTOPEFT_NEEDS_BROWSER asks for it")
    pytest.skip(reason)


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser of Playwright; skips or fails the test where there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        absent("playwright is not installed")
    path = executable()
    if path is None:
        absent(f"no browser: none of {', '.join(NAMES)} is on the path")
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not work for root, as which containers run.
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        found = playwright.chromium.launch(executable_path=path, args=flags)
        yield found
        found.close()
