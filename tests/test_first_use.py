"""What most commands import leaves out what is slow to import and what few of them need."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "ray", "optuna", "datasets")
FEW_NEED = (
    *("ray", "optuna", "sklearn", "pandas", "scipy.stats", "peft", "datasets"),
    "transformers.trainer_utils",
)


@pytest.mark.parametrize(
    ("code", "left_out"),
    [
        ("from autopeft.cli import main; main(['--help'])", HEAVY),
        ("import autopeft.search.planning.arguments, autopeft.training.arguments", HEAVY),
        ("import autopeft.export.arguments", HEAVY),
        ("import autopeft.tasks, autopeft.hybrid, autopeft.training, autopeft.export.api", FEW_NEED),
    ],
)
def test_what_few_need_is_imported_on_first_use(code: str, left_out: tuple[str, ...]) -> None:
    code += f"; import sys; print(sorted(set({left_out}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_callback_of_the_trainer_is_there() -> None:
    import autopeft.hybrid
    from autopeft.hybrid import HybridCallback

    assert HybridCallback.__module__ == "autopeft.hybrid.callback"
    assert not hasattr(autopeft.hybrid, "AnotherCallback")
