"""The faults that are tried, what is said of each, and where: the table of docs/faults.md.

``python tests/faults.py`` writes it there; a test compares.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "faults.md"
BEGIN, END = "<!-- made by tests/faults.py -->\n", "<!-- end -->\n"

HERE = "tests/parallel/test_faults.py"
CHECKPOINTS = "tests/parallel/test_checkpoint.py"
TRAIN, CHAOS = "tests/e2e/test_train.py", "tests/e2e/test_chaos.py"
WAITS = "it did not come to conv3 forward (step 3), where rank 0 waits; "
WAITS += "its last was conv3 backward (step 2)"


@dataclass(frozen=True)
class Fault:
    """``then`` is what is said, or what happens where ``said`` is off."""

    what: str
    then: str
    test: str
    where: str = HERE
    said: bool = True


FAULTS = {
    "killed": Fault(
        "a rank is killed",
        f"rank 1 ended by SIGKILL: {WAITS}",
        "test_a_fault_of_one_rank_ends_the_other_in_these_words",
    ),
    "stopped": Fault(
        "a rank is stopped (SIGSTOP)",
        "rank 1 has shown no sign of life for 2 s (it was stopped, or its machine is lost): "
        f"{WAITS}",
        "test_a_fault_of_one_rank_ends_the_other_in_these_words",
    ),
    "crashed": Fault(
        "a rank fails",
        f"rank 1 ended by exit code 1: {WAITS}",
        "test_a_rank_that_fails_is_told_with_its_traceback",
    ),
    "slow": Fault(
        "a rank lives and does not come",
        f"rank 1 lives and lets others wait: {WAITS}; if it has reason to be slow, "
        "raise mesh.timeout_s",
        "test_a_fault_of_one_rank_ends_the_other_in_these_words",
    ),
    "skips": Fault(
        "a rank skips an exchange",
        "rank 1 skipped fc7 forward (step 3) and came to fc8 forward (step 3)",
        "test_a_fault_of_one_rank_ends_the_other_in_these_words",
    ),
    "seed": Fault(
        "a rank has another configuration",
        "what runs differs: seed is 1 on rank 1 and 0 on rank 0; "
        "start every rank with the same command, code and data",
        "test_a_rank_that_diverges_is_refused_by_all_in_these_words",
    ),
    "code": Fault(
        "a rank has other code",
        "what runs differs: code is another on rank 1 and … on rank 0; "
        "start every rank with the same command, code and data",
        "test_a_rank_that_diverges_is_refused_by_all_in_these_words",
    ),
    "torch": Fault(
        "a rank has another library version",
        "what runs differs: torch is another on rank 1 and … on rank 0; "
        "start every rank with the same command, code and data",
        "test_a_rank_that_diverges_is_refused_by_all_in_these_words",
    ),
    "batch": Fault(
        "a rank has another batch",
        "the batch of step 1 differs: CRC-32 is … on rank 1 and … on rank 0; all towers "
        "must read the same store with the same seed and library versions",
        "test_a_rank_that_diverges_is_refused_by_all_in_these_words",
    ),
    "elsewhere": Fault(
        "a rank of another machine is killed, or stopped",
        "the same words as here; a stopped process is left to its own launcher",
        "test_a_fault_on_another_machine_is_told_in_the_same_words",
        said=False,
    ),
    "restart": Fault(
        "a rank is killed under torchrun with `MAX_RESTARTS=1`",
        "both start again from the newest checkpoint; the final weights are those of an "
        "undisturbed run to the bit",
        "test_a_rank_killed_under_torchrun_starts_again_and_nothing_is_lost",
        said=False,
    ),
    "launcher": Fault(
        "the launcher is killed",
        "the system ends its ranks with it",
        "test_a_run_whose_ranks_and_launcher_are_killed_ends_with_the_same_weights",
        CHAOS,
        said=False,
    ),
    "anywhere": Fault(
        "ranks and the launcher are killed at random moments, in training, saving and evaluating",
        "the same command goes on; weights, momenta, streams and metrics are those of an "
        "undisturbed run to the bit, and no process is left",
        "test_a_run_whose_ranks_and_launcher_are_killed_ends_with_the_same_weights",
        CHAOS,
        said=False,
    ),
    "signal": Fault(
        "a run is interrupted (SIGTERM, Ctrl-C)",
        "it saves, and leaves with 128 + the signal's number; no process is left",
        "test_a_run_that_is_interrupted_is_saved_and_leaves_no_process",
        TRAIN,
        said=False,
    ),
    "nan": Fault(
        "the loss is no number",
        "the run ends at that step, with the layer where it first appeared and the last "
        "checkpoint from before",
        "test_the_layer_where_it_first_appeared_and_the_checkpoint_before_are_named",
        TRAIN,
        said=False,
    ),
    "flipped": Fault(
        "bits of a checkpoint are flipped, its files cut short (200 and 50 times)",
        "each is noticed, and the checkpoint before is taken",
        "test_every_flipped_bit_and_every_truncation_is_noticed_and_the_one_before_is_taken",
        CHECKPOINTS,
        said=False,
    ),
    "damaged": Fault(
        "the newest checkpoint of a run is damaged",
        "one line names it, the one before is taken, and it is set aside",
        "test_a_damaged_checkpoint_is_passed_over_in_one_line_and_set_aside",
        TRAIN,
        said=False,
    ),
    "full": Fault(
        "the disk is full",
        "the checkpoints before are as they were; all ranks say what to do, and the same command "
        "goes on",
        "test_a_full_disk_leaves_what_was_saved_and_all_ranks_say_what_to_do",
        CHECKPOINTS,
        said=False,
    ),
    "taken": Fault(
        "another process trains in the directory",
        "it is refused",
        "test_a_directory_that_another_process_trains_in_is_refused",
        TRAIN,
        said=False,
    ),
    "pickle": Fault(
        "a checkpoint's tensors are pickles that would run a command",
        "it is refused, and nothing has run",
        "test_tensors_of_a_checkpoint_that_are_pickles_are_refused",
        "tests/unit/test_security.py",
        said=False,
    ),
}


def table() -> str:
    lines = ["| fault | what is said, or happens | tried in |", "|---|---|---|"]
    for fault in FAULTS.values():
        then = f"`{fault.then}`" if fault.said else fault.then
        test = f"[{fault.test}](../{fault.where})"
        lines.append(f"| {fault.what} | {then} | {test} |")
    return "\n".join(lines) + "\n"


def tests_of(file: str) -> set[str]:
    tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def written(page: str) -> str:
    """The page with the table as it is now."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
