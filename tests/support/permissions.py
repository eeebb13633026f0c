"""Modes of files that hold for the tests as they hold for users, also where the tests run as root."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["keeping_modes", "modes_hold", "sealed"]

_VERSION = 0x20080522  # of the two calls of Linux; capability n is bit n of the first of two words
_PASS_BY = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_DROP = 24  # PR_CAPBSET_DROP


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Words(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("kept", ctypes.c_uint32)]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@contextmanager
def modes_hold() -> Iterator[None]:
    """Within, this thread may read and write what the modes of files let it, root or not."""
    if os.geteuid() != 0:
        yield
        return
    if not sys.platform.startswith("linux"):
        pytest.skip("root passes by every mode here")
    libc, header, words = _libc(), _Header(_VERSION, 0), (_Words * 2)()
    if libc.capget(ctypes.byref(header), words) != 0:
        pytest.skip("root's capabilities cannot be read here")
    before = words[0].effective
    words[0].effective = before & ~_PASS_BY
    assert libc.capset(ctypes.byref(header), words) == 0
    try:
        yield
    finally:
        words[0].effective = before
        assert libc.capset(ctypes.byref(header), words) == 0


def keeping_modes() -> None:
    """As `modes_hold`, for good, in a process that is about to start a program (`preexec_fn`)."""
    if os.geteuid() == 0:
        for capability in (1, 2):
            _libc().prctl(_DROP, capability, 0, 0, 0)


@contextmanager
def sealed(path: Path, mode: int = 0) -> Iterator[Path]:
    """Within, a file or folder has this mode; afterwards it can be removed."""
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield path
    finally:
        path.chmod(before)
