"""The tested faults and environments, each with its outcome and its test: tables of docs/faults.md.

``python tests/faults.py`` writes the tables; a test compares them with the page.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "faults.md"
END = "<!-- end -->\n"

FAULTS_TEST = "tests/distributed/test_faults.py"
CHECKPOINTS = "tests/checkpoint/test_checkpoint.py"
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
}


ENVIRONMENT, APP = "tests/distributed/test_process_env.py", "tests/cli/test_app.py"
LISTENING, TRACKING = "tests/e2e/test_listening.py", "tests/tracking/test_tracking.py"
PATHS = "tests/config/test_paths.py"


def _environment(name: str, outcome: str, test: str, file: str = ENVIRONMENT) -> Fault:
    return Fault(name, outcome, test, file, is_message=False)


OWN_PROCESSES = "test_a_run_in_a_container_of_a_job_starts_its_own_processes"
ENVIRONMENTS = [
    _environment(
        "variables of Slurm, Open MPI, MPICH, Intel MPI, PMIx, MVAPICH, PBS, Grid Engine, LSF, "
        "Kubeflow, SageMaker or Azure, or left over from torchrun",
        "they make no process a rank",
        "test_what_a_job_system_sets_makes_no_process_a_rank",
    ),
    _environment(
        "all of these at once, with network interfaces that do not exist and `LC_ALL=C`, on one "
        "process and on two",
        "the run starts its own processes and finishes",
        OWN_PROCESSES,
    ),
    _environment(
        "`RANK=1` and a mistake in the command, for six commands",
        "one line and exit code 2",
        "test_every_command_prints_its_errors_in_a_container_of_a_job",
    ),
    _environment(
        "a mistake in the command under torchrun",
        "the first rank of each machine prints it; in commands that do not join, every rank",
        "test_a_user_error_is_printed_once_per_machine",
    ),
    _environment(
        "your own program with `init_mesh` and an old `MASTER_ADDR`",
        "a `RunError` names the address, after at most 60 s",
        "test_joining_ranks_that_do_not_exist_fails_soon",
    ),
    _environment(
        "the same, and SIGTERM",
        "it ends at once",
        "test_a_process_that_waits_for_other_ranks_handles_signals",
    ),
    _environment(
        "`WORLD_SIZE=four`, `RANK=-1`, an empty `LOCAL_RANK`",
        "the error names the variable",
        "test_a_rank_that_is_no_number_is_reported",
    ),
    _environment(
        "the host name does not resolve, or to an old address in `/etc/hosts`",
        "ranks meet on loopback",
        "test_a_command_listens_on_loopback_only_and_no_store_behind_a_port_answers_an_attacker",
        LISTENING,
    ),
    _environment(
        "several runs or sweeps begin in one second",
        "each has a directory of its own",
        "test_runs_and_sweeps_that_begin_in_one_second_have_directories_of_their_own",
        APP,
    ),
    _environment(
        "`WANDB_PROJECT`, `_ENTITY`, `_NAME`, `_RUN_GROUP`, `_TAGS`, `_NOTES`, `_JOB_TYPE`, `_DIR`",
        "wandb's meaning; the run stays in its directory",
        "test_wandbs_variables_are_heeded",
        TRACKING,
    ),
    _environment(
        "`WANDB_MODE` `dryrun` and `run`, wandb's former names",
        "offline and online",
        "test_the_environment_variable_overrides_the_setting_unless_it_is_disabled",
        TRACKING,
    ),
    _environment(
        "a project that wandb refuses",
        "one line with wandb's reason",
        "test_a_project_that_wandb_refuses_is_reported",
        TRACKING,
    ),
    _environment(
        "no `HOME`",
        "the run directory is wandb's home",
        "test_a_user_without_a_home_directory_gets_one_for_wandb",
        TRACKING,
    ),
    _environment(
        "a sweep with wandb",
        "its runs share a group and are named by the settings that differ",
        "test_jobs_of_a_sweep_share_a_group_and_are_named_by_what_differs",
        APP,
    ),
    _environment(
        "a sweeper that optimises, and a job that fails",
        "jobs return the validation error; a failed one returns infinity",
        "test_a_sweeper_gets_the_result_of_each_job_and_infinity_for_a_failed_one",
        APP,
    ),
    _environment(
        "a sweeper or launcher of Hydra that is not installed",
        "the error names the package to install",
        "test_a_missing_plugin_of_hydra_is_reported_with_its_package",
        APP,
    ),
    _environment(
        "`hydra.job.chdir=true`",
        "relative paths start where the command was given",
        "test_relative_paths_are_those_of_where_the_command_was_given",
        APP,
    ),
    _environment(
        "`~` in any path",
        "the home directory; an unknown user is reported",
        "test_a_tilde_is_the_home_directory_in_every_path_of_a_command",
        PATHS,
    ),
    _environment(
        "32 names with spaces, `=`, `#`, `( )`, `[ ]`, `{ }`, quotes or Chinese characters",
        "read as written",
        "test_text_is_read_as_it_is_written",
        PATHS,
    ),
    _environment(
        "NVIDIA drivers for CUDA 12, or no GPU",
        "`make setup CUDA=12` and `CUDA=cpu` install other builds",
        "test_set_up_installs_builds_for_cuda_12_or_without_cuda",
        "tests/project/test_setup.py",
    ),
]

TABLES = {  # by the line that begins each on the page
    "<!-- made by tests/faults.py -->\n": ("fault", FAULTS.values()),
    "<!-- made by tests/faults.py: environments -->\n": ("environment", ENVIRONMENTS),
}


def table(heading: str, rows: Iterable[Fault]) -> str:
    lines = [f"| {heading} | error message or outcome | test |", "|---|---|---|"]
    for fault in rows:
        outcome = f"`{fault.outcome}`" if fault.is_message else fault.outcome
        test = f"[{fault.test}](../{fault.file})"
        lines.append(f"| {fault.name} | {outcome} | {test} |")
    return "\n".join(lines) + "\n"


def tests_of(file: str) -> set[str]:
    tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def with_tables(page: str) -> str:
    """The page with its tables replaced by the current ones."""
    for begin, (heading, rows) in TABLES.items():
        before, rest = page.split(begin)
        page = before + begin + table(heading, rows) + END + rest.split(END, 1)[1]
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
