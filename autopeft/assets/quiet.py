"""Keep transformers' progress bars and load reports off the screen while a model is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

__all__ = ["quiet_libraries", "quiet_transformers"]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Errors only and no progress bar inside the block; verbosity and bars are as before afterwards.

    What the load report would say is checked by the caller instead (see `autopeft.assets.models.load_model`).
    """
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def quiet_libraries() -> None:
    """Keep the progress bars and advice of the libraries off the terminal; errors still come through."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
