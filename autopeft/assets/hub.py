"""Whether the model and data hub answers: asked once per process, and never for longer than three seconds."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from functools import lru_cache

__all__ = ["PROBE_SECONDS", "hub_answers"]

PROBE_SECONDS = 3.0
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


@lru_cache(maxsize=1)
def hub_answers() -> bool:
    """Whether the hub answers within `PROBE_SECONDS`; False at once where an offline variable is set.

    The answer is kept for the process: `hub_answers.cache_clear()` asks again.
    """
    if any(os.environ.get(name, "").strip().upper() in {"1", "TRUE", "YES", "ON"} for name in _OFFLINE):
        return False
    from huggingface_hub import constants

    answers: list[bool] = []
    # Name resolution ignores socket timeouts, so the probe runs in a thread that may be left behind.
    probe = threading.Thread(target=lambda: answers.append(_head(constants.ENDPOINT)), daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    return bool(answers and answers[0])


def _head(url: str) -> bool:
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError):
        return False
