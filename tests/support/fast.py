"""Which tests are `fast`: every room's, in one process, in less than two minutes.

A test is fast unless it is `slow` or named below, so a new file of tests is fast as it is. A fast test starts
no process, and so no Ray either; one that does fails and says that it belongs in `PROCESSES`. One that
computes for seconds belongs in `LONG`: `pytest -m fast` ends with a list of the longest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["is_fast", "left_out", "names"]

PROCESSES = (
    "experiments/tests/test_counting.py::test_every_side_is_measured_and_agrees",
    "tests/cli/test_bad_input.py::test_from_outside_there_is_no_traceback_unless_asked_for",
    "tests/cli/test_commands.py::test_another_process_scores_and_predicts_the_same",
    "tests/cli/test_commands.py::test_help_is_there_before_torch_is",
    "tests/cli/test_debug.py",
    "tests/cli/test_declared.py::test_declarations_are_read_without_torch",
    "tests/plugins/test_task_kind.py",
    "tests/plugins/test_toys.py",
    "tests/report/html/test_browser.py",
    "tests/runs/test_folder.py::test_a_second_process_is_refused",
    "tests/search/execution/test_environment.py::"
    "test_folders_of_killed_processes_are_removed_and_those_in_use_are_not",
    "tests/search/execution/test_process.py::test_how_the_process_of_another_parent_ended",
    "tests/search/execution/test_ray_executor.py",
    "tests/search/execution/test_runners.py::test_a_worker_that_unpickles_a_job_knows_its_runner",
    "tests/search/execution/test_worker.py::test_where_memory_is_really_short_fewer_rows_are_taken_at_once",
    "tests/search/selection/test_baseline_cache.py::test_two_processes_write_the_same_run",
    "tests/search/test_cluster.py",
    "tests/search/test_faults.py",
    "tests/search/test_local_search.py",
    "tests/search/test_search_api.py::test_a_search_end_to_end",
    "tests/search/test_search_api.py::test_ctrl_c_keeps_the_best_so_far",
    "tests/search/tracking/test_ray_callbacks.py",
    "tests/search/tracking/test_reporter.py::test_names_are_read_without_ray",
    "tests/search/tracking/test_reporter.py::test_what_is_not_installed_is_refused_with_what_to_install",
    "tests/test_assets.py::test_two_processes_download_once",
    "tests/test_entry_points.py",
    "tests/training/trunk/test_store.py::test_a_killed_writer_leaves_nothing_wrong",
)
LONG = ("tests/search/test_long_search.py",)

# Every method on every backbone takes minutes. Here every method is on one backbone, and one method on every
# backbone; generation needs a decoder.
CONTRACT = "tests/contract/test_contract.py"
_OF_CONTRACT = re.compile(r"\[(\w+-)?lora-\w+\]|test_generate_\w+\[.*-gpt2\]|\[(.*-)?bert\]|^[^\[]+$")


def is_fast(test: str) -> bool:
    """Whether a test, named by its id, is fast, provided that it is not `slow`."""
    if names(CONTRACT, test):
        return _OF_CONTRACT.search(test) is not None
    return not any(names(entry, test) for entry in left_out())


def left_out() -> Iterable[str]:
    """Files and tests that are not fast."""
    return (*PROCESSES, *LONG)


def names(entry: str, test: str) -> bool:
    """Whether an entry of the tables is a test's id or that of what it is in."""
    return test == entry or test.startswith((f"{entry}::", f"{entry}["))
