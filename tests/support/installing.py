"""Packages of other people's, installed by pip into a folder of their own, without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path


def install(package: Path, folder: Path) -> Path:
    """Install the package in the folder `package`; returns the folder that has to be on the path."""
    source, target = folder / "source", folder / "target"
    shutil.copytree(package, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    return target


def environment(target: Path, **more: str) -> dict[str, str]:
    """This process's environment, with an installed package on the path."""
    path = os.pathsep.join(filter(None, (str(target), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **more}
