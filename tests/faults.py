"""The tested faults, each with its error message and its test: the table of docs/faults.md.

``python tests/faults.py`` writes the table; a test compares it with the page.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "faults.md"
BEGIN, END = "<!-- made by tests/faults.py -->\n", "<!-- end -->\n"

FAULTS_TEST = "tests/distributed/test_faults.py"
CHECKPOINTS = "tests/checkpoint/test_checkpoint.py"
START, EVALUATE = "tests/cli/test_start.py", "tests/inference/test_evaluate.py"
TRAIN, CHAOS = "tests/e2e/test_train.py", "tests/e2e/test_chaos.py"
WAITS = "all-gather conv3 forward (step 3); rank 0 is waiting; "
WAITS += "rank 1's last collective was reduce-scatter conv3 backward (step 2)"
WAITS_IN_REPLAY = "all-gather fc7 forward (step 6); rank 0 is waiting; "
WAITS_IN_REPLAY += "rank 1's last collective was all-gather fc6 forward (step 6)"


@dataclass(frozen=True)
class Fault:
    """``outcome`` is the error message, or a description where ``is_message`` is off."""

    name: str
    outcome: str
    test: str
    file: str = FAULTS_TEST
    is_message: bool = True


FAULTS = {
    "killed": Fault(
        "a rank is killed",
        f"rank 1 was killed by SIGKILL: it did not reach {WAITS}",
        "test_a_fault_of_one_rank_ends_all_with_this_diagnosis",
    ),
    "stopped": Fault(
        "a rank is stopped (SIGSTOP)",
        "rank 1 has shown no sign of life for 2 s (it was stopped, or its machine is down): "
        f"it did not reach {WAITS}",
        "test_a_fault_of_one_rank_ends_all_with_this_diagnosis",
    ),
    "crashed": Fault(
        "a rank raises an exception",
        f"rank 1 exited with code 1: it did not reach {WAITS}",
        "test_a_rank_that_fails_is_reported_with_its_traceback",
    ),
    "slow": Fault(
        "a rank is alive but hangs",
        f"rank 1 is alive but has not reached {WAITS}; if rank 1 is expected to be slow, "
        "raise mesh.timeout_s",
        "test_a_fault_of_one_rank_ends_all_with_this_diagnosis",
    ),
    "skips": Fault(
        "a rank skips a collective",
        "rank 1 skipped all-gather fc7 forward (step 3) and called all-gather fc8 forward (step 3)",
        "test_a_fault_of_one_rank_ends_all_with_this_diagnosis",
    ),
    "killed in a replay": Fault(
        "a rank is killed while a CUDA graph is replayed",
        f"rank 1 was killed by SIGKILL: it did not reach {WAITS_IN_REPLAY}",
        "test_a_fault_within_a_replayed_step_names_the_exchange",
    ),
    "stopped in a replay": Fault(
        "a rank is stopped while a CUDA graph is replayed",
        "rank 1 has shown no sign of life for 2 s (it was stopped, or its machine is down): "
        f"it did not reach {WAITS_IN_REPLAY}",
        "test_a_fault_within_a_replayed_step_names_the_exchange",
    ),
    "slow in a replay": Fault(
        "a rank is alive but hangs while a CUDA graph is replayed",
        f"rank 1 is alive but has not reached {WAITS_IN_REPLAY}; if rank 1 is expected to be slow, "
        "raise mesh.timeout_s",
        "test_a_fault_within_a_replayed_step_names_the_exchange",
    ),
    "seed": Fault(
        "a rank has a different configuration",
        "configuration or code differs between ranks: seed is 1 on rank 1 and 0 on rank 0; "
        "start every rank with the same command, code and data",
        "test_ranks_that_diverge_are_refused_with_this_message",
    ),
    "code": Fault(
        "a rank has different code",
        "configuration or code differs between ranks: code is 1.2.3 on rank 1 and … on rank 0; "
        "start every rank with the same command, code and data",
        "test_ranks_that_diverge_are_refused_with_this_message",
    ),
    "torch": Fault(
        "a rank has a different library version",
        "configuration or code differs between ranks: torch is 1.2.3 on rank 1 and … on rank 0; "
        "start every rank with the same command, code and data",
        "test_ranks_that_diverge_are_refused_with_this_message",
    ),
    "batch": Fault(
        "a rank has a different batch",
        "batch of step 1 differs between ranks: digest is … on rank 1 and … on rank 0; "
        "all towers must read the same store with the same seed and library versions",
        "test_ranks_that_diverge_are_refused_with_this_message",
    ),
    "elsewhere": Fault(
        "a rank on another machine is killed or stopped",
        "the same diagnosis; its own launcher has to end a stopped process",
        "test_a_fault_on_another_machine_has_the_same_diagnosis",
        is_message=False,
    ),
    "restart": Fault(
        "a rank is killed under torchrun with `MAX_RESTARTS=1`",
        "both ranks restart from the newest checkpoint; the final weights are bit-identical to "
        "those of an uninterrupted run",
        "test_a_run_with_a_killed_rank_is_restarted_by_torchrun_without_loss",
        is_message=False,
    ),
    "launcher": Fault(
        "the launcher is killed",
        "the operating system kills its ranks",
        "test_a_run_with_killed_ranks_and_launcher_resumes_to_the_same_weights",
        CHAOS,
        is_message=False,
    ),
    "anywhere": Fault(
        "ranks and the launcher are killed at random times, in training, saving and validation",
        "the same command resumes; weights, momenta, random streams and metrics are bit-identical "
        "to those of an uninterrupted run, and no process is left",
        "test_a_run_with_killed_ranks_and_launcher_resumes_to_the_same_weights",
        CHAOS,
        is_message=False,
    ),
    "signal": Fault(
        "a run is interrupted (SIGTERM, Ctrl-C)",
        "it saves a checkpoint and exits with 128 + the signal number; no process is left",
        "test_a_run_that_is_interrupted_is_saved_and_leaves_no_process",
        TRAIN,
        is_message=False,
    ),
    "nan": Fault(
        "the loss becomes NaN or infinite",
        "the run fails at that step; the message names the first layer with a non-finite value and "
        "the last checkpoint",
        "test_the_layer_where_it_first_appeared_and_the_checkpoint_before_are_named",
        TRAIN,
        is_message=False,
    ),
    "flipped": Fault(
        "bits of a checkpoint are flipped (200 times) or its files truncated (50 times)",
        "each is detected, and the previous checkpoint is used",
        "test_every_flipped_bit_and_every_truncation_is_detected",
        CHECKPOINTS,
        is_message=False,
    ),
    "damaged": Fault(
        "the newest checkpoint of a run is damaged",
        "a one-line warning names it, the previous checkpoint is used, and the damaged one is "
        "renamed",
        "test_a_damaged_checkpoint_is_passed_over_in_one_line_and_set_aside",
        TRAIN,
        is_message=False,
    ),
    "full": Fault(
        "the disk is full",
        "earlier checkpoints are intact; all ranks raise an error with a remedy, and the same "
        "command resumes",
        "test_a_full_disk_keeps_earlier_checkpoints_and_all_ranks_raise_with_a_remedy",
        CHECKPOINTS,
        is_message=False,
    ),
    "taken": Fault(
        "another process trains in the run directory",
        "the second one is refused",
        "test_a_directory_that_another_process_trains_in_is_refused",
        TRAIN,
        is_message=False,
    ),
    "pickle": Fault(
        "a checkpoint's tensors are pickles that would run a command",
        "it is refused, and nothing is run",
        "test_tensors_of_a_checkpoint_that_are_pickles_are_refused",
        "tests/project/test_security.py",
        is_message=False,
    ),
    "slip": Fault(
        "a misspelt setting or flag of any command",
        "one line, before torch or DALI is imported; `--help` does not need them either",
        "test_help_and_mistakes_need_neither_torch_nor_dali",
        START,
        is_message=False,
    ),
    "failed start": Fault(
        "a run or a sweep fails before it begins: a wrong setting, store or checkpoint",
        "one line; no directory is left",
        "test_a_failed_start_leaves_no_folder",
        START,
        is_message=False,
    ),
    "reader": Fault(
        "the reader of a command's output ends first (`| head`)",
        "the command ends without a traceback",
        "test_a_reader_that_has_seen_enough_ends_a_command_without_a_traceback",
        START,
        is_message=False,
    ),
    "checkpoint": Fault(
        "`checkpoint=`, `resume=` or `init_from=` names something else than a run or a checkpoint",
        "one line that says what it is: nothing, a run without checkpoints, or another folder",
        "test_a_folder_without_a_checkpoint_is_named_for_what_it_is",
        CHECKPOINTS,
        is_message=False,
    ),
    "layers": Fault(
        "`init_from=` with a network of other layers",
        "one line with the layers that fit, as a setting",
        "test_layers_that_do_not_match_are_refused_by_name",
        CHECKPOINTS,
        is_message=False,
    ),
    "classes": Fault(
        "`evaluate` on images whose classes are not those of the model",
        "one line with the setting that matches them",
        "test_different_classes_are_answered_with_the_way_to_compare_them",
        EVALUATE,
        is_message=False,
    ),
    "labels": Fault(
        "a file of classes or labels that is malformed or does not fit",
        "one line that names the first wrong entry",
        "test_a_file_of_labels_that_cannot_be_used_is_answered_in_one_line",
        EVALUATE,
        is_message=False,
    ),
    "outputs": Fault(
        "a file to write is in a folder that does not exist",
        "one line, before a model is loaded",
        "test_files_are_checked_before_anything_is_loaded",
        EVALUATE,
        is_message=False,
    ),
    "few classes": Fault(
        "a top-5 error of fewer than six classes, which any network would have as 0",
        "it is not shown",
        "test_there_is_no_top5_error_of_fewer_than_six_classes",
        EVALUATE,
        is_message=False,
    ),
    "few seeds": Fault(
        "an ablation with fewer than three seeds",
        "its differences are printed with a warning",
        "test_differences_of_too_few_seeds_are_printed_with_a_warning",
        "tests/ledger/test_effects.py",
        is_message=False,
    ),
    "stopped early": Fault(
        "an ablation whose runs were stopped before their schedule ended",
        "the caption says after how many steps",
        "test_a_caption_says_how_long_the_runs_were_trained",
        "tests/ledger/test_effects.py",
        is_message=False,
    ),
}


def table() -> str:
    lines = ["| fault | error message or outcome | test |", "|---|---|---|"]
    for fault in FAULTS.values():
        outcome = f"`{fault.outcome}`" if fault.is_message else fault.outcome
        test = f"[{fault.test}](../{fault.file})"
        lines.append(f"| {fault.name} | {outcome} | {test} |")
    return "\n".join(lines) + "\n"


def tests_of(file: str) -> set[str]:
    tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def with_table(page: str) -> str:
    """The page with its table replaced by the current one."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
