"""Which tests are `fast`: every room's, in less than two minutes on two cores.

A test is fast unless it is `slow` or named below, so a new file of tests is fast as it is. A fast test starts
no process, and so no Ray either, but pip where it fetches a model that is not there yet; one that does fails
and says that it belongs in `PROCESSES`. One that computes for seconds belongs in `LONG`: `pytest -m fast`
ends with a list of the longest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["is_fast", "left_out", "names"]

PROCESSES = (
    "experiments/tests/test_versions.py",
    "experiments/tests/test_counting.py::test_every_side_is_measured_and_agrees",
    "tests/tasks/test_gym.py::test_a_process_that_takes_too_long_is_stopped",
    "tests/tasks/test_gym.py::test_rows_are_the_same_for_a_seed_and_fewer_begin_more",
    "tests/tasks/test_gym.py::test_splits_share_no_prompt_and_come_from_seeds_of_their_own",
    "tests/cli/test_bad_input.py::test_from_outside_there_is_no_traceback_unless_asked_for",
    "tests/test_second_device.py",
    "tests/cli/test_chat.py",
    "tests/cli/test_commands.py::test_a_fixed_recipe_whose_name_is_no_word",
    "tests/assets/test_cache.py::test_a_process_that_cannot_write_the_cache_has_one_of_its_own",
    "tests/cli/test_commands.py::test_a_table_is_predicted_row_for_row",
    "tests/cli/test_commands.py::test_another_process_scores_and_predicts_the_same",
    "tests/cli/test_commands.py::test_data_are_shown_before_training_and_beside_the_scores",
    "tests/cli/test_debug.py",
    "tests/cli/test_lost_streams.py",
    "tests/cli/test_images.py",
    "tests/cli/test_interrupted.py",
    "tests/cli/test_recommend.py",
    "tests/cli/test_runs.py::test_damaged_runs_stand_in_the_list",
    "tests/cli/test_runs.py::test_what_was_exported_beside_the_runs_is_none_of_them",
    "tests/cli/test_saved.py",
    "tests/cli/test_tables.py::test_names_of_runs_can_be_copied",
    "tests/cli/test_tables.py::test_one_run_with_its_trials_and_its_front",
    "tests/cli/test_train_progress.py::test_on_a_terminal_there_is_a_bar",
    "tests/docs/test_site.py",
    "tests/plugins/test_task_kind.py",
    "tests/plugins/test_toys.py",
    "tests/report/html/test_browser.py",
    "tests/runs/test_folder.py::test_a_second_process_is_refused",
    "tests/runs/test_recorded_runs.py::test_one_that_was_killed_goes_on_to_its_end",
    "tests/search/execution/test_leftovers.py",
    "tests/search/execution/test_output.py::test_a_pipe_is_no_file",
    "tests/search/execution/test_output.py::test_a_process_reads_its_own_output_files",
    "tests/search/execution/test_output.py::test_one_file_for_both_is_named_once",
    "tests/search/execution/test_private_folder.py::"
    "test_folders_of_killed_processes_are_removed_and_those_in_use_are_not",
    "tests/search/execution/test_process.py::test_a_process_that_stands_still_is_told_from_one_that_works",
    "tests/search/execution/test_process.py::test_how_the_process_of_another_parent_ended",
    "tests/search/execution/test_ray_cluster.py",
    "tests/search/execution/test_ray_executor.py",
    "tests/search/execution/test_runners.py::test_a_worker_that_unpickles_a_job_knows_its_runner",
    "tests/search/execution/test_process.py::test_a_process_that_goes_on_is_said_to",
    "tests/search/execution/test_worker.py::test_where_memory_is_really_short_fewer_rows_are_taken_at_once",
    "tests/search/selection/test_baseline_cache.py::test_two_processes_write_the_same_run",
    "tests/search/test_cluster.py",
    "tests/search/test_faults.py",
    "tests/search/test_local_search.py",
    "tests/search/test_search_api.py::test_a_search_end_to_end",
    "tests/search/tracking/test_ray_callbacks.py",
    "tests/search/tracking/test_reporter.py::test_names_are_read_without_ray",
    "tests/search/tracking/test_reporter.py::test_what_is_not_installed_is_refused_with_what_to_install",
    "tests/test_display.py::test_a_real_notebook_shows_them",
    "tests/test_entry_points.py",
    "tests/test_first_use.py",
    "tests/training/trunk/test_store.py::test_a_killed_writer_leaves_nothing_wrong",
)
LONG = (
    "tests/second_device/test_contract.py",
    "tests/second_device/test_training.py",
    "tests/contract/test_verbalised.py",
    "tests/tasks/kinds/test_verbalised.py::test_a_recipe_is_trained_saved_and_asked",
    "tests/tasks/kinds/test_verbalised.py::test_a_search_goes_on_and_compares_with_the_backbone_as_it_is",
    "tests/export/test_encoder_decoder.py",
    "tests/tasks/kinds/test_generation_of_targets.py::test_a_batch_gives_what_each_row_alone_gives",
    "tests/tasks/kinds/test_seq2seq.py::test_a_recipe_is_trained_and_used",
    "tests/tasks/kinds/test_seq2seq.py::test_classification_on_an_encoder_decoder",
    "tests/tasks/kinds/test_seq2seq.py::test_the_cached_trunk_gives_the_same",
    "tests/search/test_untrained.py",
    "tests/tasks/kinds/test_multiple_choice.py::test_a_recipe_is_trained_and_used",
    "tests/tasks/kinds/test_multiple_choice.py::test_a_search",
    "tests/tasks/kinds/test_contract.py::test_a_search_that_was_killed_goes_on",
    "tests/tasks/kinds/test_contract.py::test_the_trainer_of_transformers_trains_a_hybrid",
    "tests/tasks/kinds/test_multi_label.py::test_a_recipe_is_trained_and_used",
    "tests/tasks/kinds/test_question_answering.py::test_a_recipe_is_trained_and_used",
    "tests/tasks/kinds/test_token_classification.py::test_a_recipe_is_trained_and_used",
    "experiments/tests/lib/test_surrogate.py",
    "experiments/tests/test_composition_matrix.py",
    "experiments/tests/test_support_matrix.py",
    "experiments/tests/test_width.py",
    "tests/assets/test_precision.py::test_a_backbone_in_bf16_trains_modules_and_head_in_fp32",
    "tests/cli/test_commands.py",
    "tests/cli/test_several_tasks.py",
    "tests/cli/test_hints.py",
    "tests/docs/test_pages.py",
    "tests/docs/test_trainer_snippet.py",
    "tests/export/test_formats.py",
    "tests/fuzz/test_fuzz.py",
    "tests/graph/test_parts.py::test_graph_counter_and_reference_agree",
    "tests/hybrid/test_attach.py::test_fifty_hybrids_in_a_row_leave_no_trace",
    "tests/hybrid/test_persistence.py",
    "tests/injection/test_rows.py::test_what_the_head_sees_is_exact",
    "tests/methods/hybrid/test_fixed_recipes.py",
    "tests/methods/reparameterized/dynamic_rank/test_adalora.py",
    "tests/methods/reparameterized/dynamic_rank/test_in_hybrids.py",
    "tests/methods/reparameterized/lora_improvements/test_laplace_lora.py",
    "tests/methods/reparameterized/lora_improvements/test_laplace_training.py",
    "tests/methods/reparameterized/low_rank/test_intrinsic_said.py::test_it_learns",
    "tests/methods/selective/unstructured/test_fish_dip.py::test_every_step_moves_entries_of_its_mask_alone",
    "tests/methods/test_init.py",
    "tests/nn/test_init.py",
    "tests/report/test_defaults.py",
    "tests/search/execution/test_driver_thread.py",
    "tests/search/execution/test_health.py::test_a_silent_place_may_only_be_busy",
    "tests/search/optimization/samplers",
    "tests/search/optimization/test_entries.py::test_a_user_reads_the_figures_of_the_recipes",
    "tests/search/space/test_in_use.py::test_what_is_not_in_use_changes_nothing",
    "tests/search/optimization/test_study.py::test_an_exhausted_space_ends_the_search_and_nothing_is_trained_twice",
    "tests/search/optimization/test_study.py::test_duplicates_are_told_the_known_score_with_raw_parameters",
    "tests/search/optimization/test_study.py::test_each_sampler_exhausts_a_small_space",
    "tests/search/optimization/test_study.py::test_two_objectives_are_told_score_and_size",
    "tests/search/selection/test_baselines.py::test_all_but_the_head_lie_inside_the_budget",
    "tests/search/selection/test_significance.py",
    "tests/search/space/test_counting.py",
    "tests/search/space/test_projection.py",
    "tests/search/space/test_projection_nearest.py",
    "tests/search/space/test_space.py::test_built_in_spaces_give_countable_recipes_on_every_backbone",
    "tests/search/strategies/test_trials.py::test_checkpoints_take_no_more_room_than_they_may",
    "tests/search/test_goals.py::test_a_search_that_was_killed_goes_on_to_the_same_end",
    "tests/search/test_goals.py::test_the_cheapest_is_looked_for_on_the_upper_layers",
    "tests/search/test_goals.py::test_the_smallest_takes_no_measurement",
    "tests/search/test_predicted_precision.py",
    "tests/search/test_long_search.py",
    "tests/search/test_serving.py",
    "tests/training/test_checkpoint.py",
    "tests/training/test_trial.py::test_a_trial_on_other_families",
    "tests/training/test_trial.py::test_many_trials_leave_no_trace",
)

# Every method on every backbone takes minutes. Here one method is on every backbone, and every method on one
# backbone in the tests that compute little.
CONTRACT = "tests/contract/test_contract.py"
_OF_CONTRACT = re.compile(
    r"\[(\w+-)?lora-\w+\]|^[^\[]+$"
    r"|::test_(identity|merge|every_parameter|what_says|where_everything)\w*\[(.*-)?bert\]"
)


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
    return test == entry or test.startswith((f"{entry}/", f"{entry}::", f"{entry}["))
