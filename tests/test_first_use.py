"""What most commands import leaves out what is slow to import and what few of them need."""

from __future__ import annotations

import subprocess
import sys

SLOW = ("ray", "optuna", "sklearn", "pandas", "scipy.stats", "peft", "datasets", "transformers.trainer_utils")
IMPORTED = ("tasks", "hybrid", "training", "export.api")


def test_what_few_need_is_imported_on_first_use() -> None:
    code = "\n".join(
        [
            "import sys",
            *(f"import autopeft.{name}" for name in IMPORTED),
            f"print(*sorted(set({SLOW}) & set(sys.modules)))",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_callback_of_the_trainer_is_there() -> None:
    import autopeft.hybrid
    from autopeft.hybrid import HybridCallback

    assert HybridCallback.__module__ == "autopeft.hybrid.callback"
    assert not hasattr(autopeft.hybrid, "AnotherCallback")
