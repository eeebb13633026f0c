"""Processes of a Ray that outlive the search that started it, as its agents do for half a minute and more."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

__all__ = ["end_processes", "processes_of"]

_END_SECONDS = 5.0


def end_processes(folder: Path) -> None:
    """Kill what is left of the Ray whose folder this is; nobody may need it any more."""
    found = processes_of(folder)
    for process in found:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(found, timeout=_END_SECONDS)


def processes_of(folder: Path) -> list[psutil.Process]:
    """This user's processes that are Ray's, and that name the folder or have a file in it open.

    Ray's agents and workers overwrite their command line and their environment with a title; what they log
    stays open.
    """
    inside = f"{folder}{os.sep}"
    found = []
    for process in psutil.process_iter():
        try:
            if process.uids().real != os.getuid() or process.pid == os.getpid():
                continue
            words = process.cmdline()
            if _is_rays(words) and (
                any(inside in word for word in words)
                or any(file.path.startswith(inside) for file in process.open_files())
            ):
                found.append(process)
        except psutil.Error:
            continue  # it ended meanwhile
    return found


def _is_rays(words: list[str]) -> bool:
    """Whether it is a program of Ray's, not somebody's look at its logs."""
    return any(word.startswith("ray::") for word in words[:1]) or any(
        "ray" in Path(word).parts and ("core" in Path(word).parts or word.endswith(".py"))
        for word in words[:3]
    )
