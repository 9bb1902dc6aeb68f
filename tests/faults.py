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
START, EVALUATE = "tests/cli/test_start.py", "tests/inference/test_evaluate.py"
IMPORTERS, MODEL = "tests/inference/test_importers.py", "tests/nn/test_model.py"
TRAIN, CHAOS = "tests/e2e/test_train.py", "tests/e2e/test_chaos.py"
HOSTILE, OUTPUT = "tests/project/test_hostile_files.py", "tests/utils/test_output.py"
ARCHIVES, SERVE = "tests/data/test_archives.py", "tests/inference/test_serve.py"
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
        "test_torchrun_restarts_a_run_with_a_killed_rank_without_loss_and_listens_on_loopback_only",
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
    "code in a model file": Fault(
        "a model file holds objects that would run code, beside its weights",
        "the weights are imported, and nothing is run",
        "test_code_beside_the_weights_is_not_run",
        IMPORTERS,
        is_message=False,
    ),
    "wrapped": Fault(
        "weights are wrapped: other keys, prefixes, settings beside them, whole modules (40 kinds)",
        "they are found, in files of torch.save (zip and older) and safetensors",
        "test_weights_are_found_in_every_wrapping",
        IMPORTERS,
        is_message=False,
    ),
    "no model": Fault(
        "a file given as a model is something else: a web page, a Git LFS pointer, a pickle, "
        "an archive … (50 kinds)",
        "one line says what it is and what to do; exit code 2",
        "test_a_file_that_is_no_model_is_named_for_what_it_is",
        IMPORTERS,
        is_message=False,
    ),
    "not finite": Fault(
        "a model has a parameter that is NaN or infinite",
        "every command refuses to load it, and names the parameter",
        "test_a_model_with_a_value_that_is_not_finite_is_not_loaded",
        "tests/inference/test_not_finite.py",
        is_message=False,
    ),
    "answer not finite": Fault(
        "the outputs of a model are NaN or infinite",
        "every command reports the model instead of a result",
        "test_an_answer_that_is_not_finite_is_an_error",
        "tests/inference/test_not_finite.py",
        is_message=False,
    ),
    "scale": Fault(
        "images are uint8, in 0–1 or of unit variance",
        "one `UserWarning` names the scale and the expected one",
        "test_images_of_another_scale_are_warned_of_once",
        MODEL,
        is_message=False,
    ),
    "replaced": Fault(
        "a layer of the network is replaced (`net.fc8 = nn.Linear(…)`)",
        "a `ConfigError` at the assignment names the layer and what to do instead",
        "test_a_layer_cannot_be_replaced",
        MODEL,
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
    "attack": Fault(
        "somebody on the machine's network looks for the ports of a run",
        "all ports are on loopback, and no key-value store of torch, which would unpickle what "
        "it receives, listens on one",
        "test_a_run_in_a_container_of_a_job_starts_its_own_processes_on_loopback",
        "tests/distributed/test_process_env.py",
        is_message=False,
    ),
    "any signal": Fault(
        "SIGTERM or SIGINT at any moment, to any command",
        "it ends within 10 s, with all its processes and without a traceback; what was done is "
        "kept",
        "test_a_command_ends_soon_with_all_its_processes",
        "tests/e2e/test_interrupts.py",
        is_message=False,
    ),
    "wish to end": Fault(
        "SIGTERM during a part of a reproduction",
        "the whole reproduction ends; the signal is not treated as a failure of that part",
        "test_code_that_survives_failures_does_not_survive_a_wish_to_end",
        OUTPUT,
        is_message=False,
    ),
    "machine": Fault(
        "ENOSPC, EDQUOT, EROFS, EMFILE, ENFILE, EFBIG or EIO, anywhere",
        "one line with the place and a remedy; no file is left half written",
        "test_an_error_of_the_machine_is_one_line_with_a_place_and_a_remedy",
        OUTPUT,
        is_message=False,
    ),
    "terminal": Fault(
        "standard output goes to a full disk, or the program that reads it has exited",
        "the command completes its work; on a full disk it reports at the end that output "
        "was lost, and exits with 1",
        "test_a_full_disk_behind_the_terminal_ends_no_command",
        OUTPUT,
        is_message=False,
    ),
    "few files": Fault(
        "a low limit on open files (`ulimit -n 12`)",
        "commands raise the soft limit; a hard limit below 64 is reported in one line",
        "test_the_limit_on_open_files_is_raised_or_reported",
        OUTPUT,
        is_message=False,
    ),
    "temporary": Fault(
        "`TMPDIR` is full",
        "flight records are kept in memory; none is a sparse file, which would end the process "
        "by SIGBUS",
        "test_a_flight_record_for_which_the_disk_has_no_space_is_kept_in_memory",
        OUTPUT,
        is_message=False,
    ),
    "removed": Fault(
        "the run directory is removed during the run",
        "the run ends in one line and makes no new directory",
        "test_a_run_directory_that_was_removed_is_not_made_again",
        CHECKPOINTS,
        is_message=False,
    ),
    "closing": Fault(
        "a program calls `mesh.close()` and ends",
        "the watchdog's thread has already ended",
        "test_closing_a_mesh_ends_the_thread_of_its_watchdog",
        "tests/distributed/test_launching.py",
        is_message=False,
    ),
    "dripping": Fault(
        "a server sends an image byte by byte",
        "`predict` gives up on it after 120 s, and the command can exit without waiting for "
        "the download",
        "test_a_server_that_drips_is_given_up_and_not_waited_for",
        "tests/inference/test_predict.py",
        is_message=False,
    ),
    "slow request": Fault(
        "a client of `serve` sends its request byte by byte",
        "it is disconnected after 30 s; during an upload after 60 s",
        "test_a_request_that_drips_is_given_up",
        SERVE,
        is_message=False,
    ),
    "slow download": Fault(
        "a server sends a data set at less than 1 KiB/s",
        "`prepare` gives it up after five minutes and keeps what was received",
        "test_a_server_that_drips_is_given_up_and_what_it_sent_is_kept",
        "tests/data/test_download.py",
        is_message=False,
    ),
    "escapes": Fault(
        "a name holds terminal escapes",
        "every message shows them as text",
        "test_every_way_to_the_terminal_escapes_names",
        OUTPUT,
        is_message=False,
    ),
    "names": Fault(
        "a tar has a member with a name of 300 MB",
        "it is refused before the name is read",
        "test_a_name_of_300_mb_is_refused_before_it_is_read",
        ARCHIVES,
        is_message=False,
    ),
    "hidden": Fault(
        "a tar has a hidden member that leaves the archive (`../../.x.jpg`)",
        "the archive is refused",
        "test_a_hostile_archive_is_refused_as_a_whole",
        ARCHIVES,
        is_message=False,
    ),
    "dots": Fault(
        "a class folder is named `...`",
        "it is a class",
        "test_a_class_folder_of_three_dots_is_a_class",
        "tests/data/test_sources.py",
        is_message=False,
    ),
    "bomb": Fault(
        "a small image file needs much memory",
        "it is refused, from its header alone, if decoding would need more than 800 MB; "
        "transparency does not add to this",
        "test_the_limit_is_of_the_memory_that_a_format_needs",
        "tests/data/test_decode.py",
        is_message=False,
    ),
    "uploads": Fault(
        "many images are sent to `serve` at once",
        "at most eight uploads are held in memory and two are decoded at a time; further "
        "uploads wait, and are refused with status 503 if they wait too long",
        "test_more_uploads_than_are_held_in_memory_wait_and_are_refused_in_the_end",
        SERVE,
        is_message=False,
    ),
    "odd checkpoint": Fault(
        "a file of a checkpoint is a pipe, `/dev/zero`, nested 100,000 times, of other types, "
        "or claims 400 GB",
        "the checkpoint is damaged; one line",
        "test_a_checkpoint_with_such_a_file_is_damaged",
        HOSTILE,
        is_message=False,
    ),
    "odd export": Fault(
        "an exported file is a pipe, a device or otherwise hostile",
        "it is refused in one line",
        "test_such_a_file_is_not_one_that_export_wrote",
        HOSTILE,
        is_message=False,
    ),
    "odd import": Fault(
        "a file to import is a pipe, a device or otherwise hostile, or has sparse, quantised or "
        "shared tensors",
        "it is refused in one line, and nothing is written",
        "test_a_model_that_cannot_be_imported_is_refused",
        HOSTILE,
        is_message=False,
    ),
    "odd definition": Fault(
        "a definition of the 2012 code is such a file, has a million sections, or reads itself",
        "it is refused in one line, and nothing is written",
        "test_a_definition_that_is_none_is_refused",
        HOSTILE,
        is_message=False,
    ),
    "odd recipe": Fault(
        "a file given as `recipe=` or `schedule=` is such a file",
        "it is refused in one line",
        "test_a_recipe_or_schedule_that_is_none_is_refused",
        HOSTILE,
        is_message=False,
    ),
    "odd run": Fault(
        "a file of a run directory is a pipe, a device or otherwise hostile",
        "`runs` lists the run as damaged",
        "test_a_run_with_such_a_file_is_listed_as_damaged",
        HOSTILE,
        is_message=False,
    ),
    "odd settings": Fault(
        "`config.yaml` of a run is not a valid settings file",
        "`resume=auto` refuses the directory in one line",
        "test_a_run_whose_settings_are_damaged_is_not_resumed",
        HOSTILE,
        is_message=False,
    ),
    "odd records": Fault(
        "the first line of `watched.jsonl` is broken",
        "one line that names it",
        "test_records_with_a_broken_first_line_are_damaged",
        HOSTILE,
        is_message=False,
    ),
    "almost": Fault(
        "a folder is named `step-²`",
        "it is no checkpoint",
        "test_a_folder_that_is_named_almost_like_a_checkpoint_is_no_checkpoint",
        HOSTILE,
        is_message=False,
    ),
    "odd store": Fault(
        "a file of a store is a pipe, a device or otherwise hostile",
        "the store is damaged; one line",
        "test_a_store_with_such_a_file_is_damaged",
        HOSTILE,
        is_message=False,
    ),
    "pipe for an image": Fault(
        "an image of a store is a pipe, missing, truncated or another image",
        "one line that names it, when it is first read",
        "test_a_missing_or_damaged_image_is_named",
        "tests/data/test_loaders.py",
        is_message=False,
    ),
    "odd source": Fault(
        "a source is a pipe or a device",
        "it is refused in one line",
        "test_a_source_that_is_no_file_is_refused",
        HOSTILE,
        is_message=False,
    ),
    "odd reproduction": Fault(
        "`reproduction.json` is a pipe, a device or otherwise hostile, or holds other types",
        "`report` refuses it in one line",
        "test_a_reproduction_with_such_a_file_is_damaged",
        HOSTILE,
        is_message=False,
    ),
}


ENVIRONMENT, APP = "tests/distributed/test_process_env.py", "tests/cli/test_app.py"
LISTENING, TRACKING = "tests/e2e/test_listening.py", "tests/tracking/test_tracking.py"
PATHS = "tests/config/test_paths.py"


def _row(name: str, outcome: str, test: str, file: str = ENVIRONMENT) -> Fault:
    return Fault(name, outcome, test, file, is_message=False)


OWN_PROCESSES = "test_a_run_in_a_container_of_a_job_starts_its_own_processes_on_loopback"
ENVIRONMENTS = [
    _row(
        "variables of Slurm, Open MPI, MPICH, Intel MPI, PMIx, MVAPICH, PBS, Grid Engine, LSF, "
        "Kubeflow, SageMaker or Azure, or left over from torchrun",
        "they do not make a process a rank",
        "test_what_a_job_system_sets_makes_no_process_a_rank",
    ),
    _row(
        "all of these at once, with network interfaces that do not exist and `LC_ALL=C`, on one "
        "process and on two",
        "the run starts its own processes and finishes",
        OWN_PROCESSES,
    ),
    _row(
        "`RANK=1` and a mistake in the command, for six commands",
        "one line and exit code 2",
        "test_every_command_prints_its_errors_in_a_container_of_a_job",
    ),
    _row(
        "a mistake in the command under torchrun",
        "the first rank of each machine prints it; in commands that do not join, every rank",
        "test_a_user_error_is_printed_once_per_machine",
    ),
    _row(
        "your own program with `init_mesh` and an old `MASTER_ADDR`",
        "a `RunError` names the address, after at most 60 s",
        "test_joining_ranks_that_do_not_exist_fails_soon",
    ),
    _row(
        "the same, and SIGTERM",
        "it ends at once",
        "test_a_process_that_waits_for_other_ranks_handles_signals",
    ),
    _row(
        "`WORLD_SIZE=four`, `RANK=-1`, an empty `LOCAL_RANK`",
        "the error names the variable",
        "test_a_rank_that_is_no_number_is_reported",
    ),
    _row(
        "the host name does not resolve, or to an old address in `/etc/hosts`",
        "ranks meet on loopback",
        "test_a_command_listens_on_loopback_only_and_no_store_behind_a_port_answers_an_attacker",
        LISTENING,
    ),
    _row(
        "several runs or sweeps begin in one second",
        "each has a directory of its own",
        "test_runs_and_sweeps_that_begin_in_one_second_have_directories_of_their_own",
        APP,
    ),
    _row(
        "`WANDB_PROJECT`, `_ENTITY`, `_NAME`, `_RUN_GROUP`, `_TAGS`, `_NOTES`, `_JOB_TYPE`, `_DIR`",
        "they have the meaning that wandb gives them, except that wandb's files stay in the "
        "run directory",
        "test_wandbs_variables_are_heeded",
        TRACKING,
    ),
    _row(
        "`WANDB_MODE` `dryrun` and `run`, wandb's former names",
        "offline and online",
        "test_the_environment_variable_overrides_the_setting_unless_it_is_disabled",
        TRACKING,
    ),
    _row(
        "a project that wandb refuses",
        "one line with wandb's reason",
        "test_a_project_that_wandb_refuses_is_reported",
        TRACKING,
    ),
    _row(
        "no `HOME`",
        "the run directory is wandb's home",
        "test_a_user_without_a_home_directory_gets_one_for_wandb",
        TRACKING,
    ),
    _row(
        "a sweep with wandb",
        "its runs share a group and are named by the settings that differ",
        "test_jobs_of_a_sweep_share_a_group_and_are_named_by_what_differs",
        APP,
    ),
    _row(
        "a sweeper that optimises, and a job that fails",
        "jobs return the validation error; a failed one returns infinity",
        "test_a_sweeper_gets_the_result_of_each_job_and_infinity_for_a_failed_one",
        APP,
    ),
    _row(
        "a sweeper or launcher of Hydra that is not installed",
        "the error names the package to install",
        "test_a_missing_plugin_of_hydra_is_reported_with_its_package",
        APP,
    ),
    _row(
        "`hydra.job.chdir=true`",
        "relative paths start where the command was given",
        "test_relative_paths_are_those_of_where_the_command_was_given",
        APP,
    ),
    _row(
        "`~` in any path",
        "the home directory; an unknown user is reported",
        "test_a_tilde_is_the_home_directory_in_every_path_of_a_command",
        PATHS,
    ),
    _row(
        "32 names with spaces, `=`, `#`, `( )`, `[ ]`, `{ }`, quotes or Chinese characters",
        "read as written",
        "test_text_is_read_as_it_is_written",
        PATHS,
    ),
    _row(
        "NVIDIA drivers for CUDA 12, or no GPU",
        "`make setup CUDA=12` or `CUDA=cpu` installs other builds; cpu where there is no driver",
        "test_set_up_installs_builds_for_this_machine_or_the_cuda_that_is_named",
        "tests/project/test_setup.py",
    ),
]

VALIDATION, LAYOUTS = "tests/inference/test_validation_store.py", "tests/data/test_layouts.py"
COMMANDS, PLAN = "tests/cli/test_commands.py", "tests/diagnostics/test_plan.py"
ATTEMPTS = [
    _row(
        "a setting under the name that other trainers use (`lr`, `batch_size`, `--lr`)",
        "the error names ours",
        "test_the_words_of_other_trainers_lead_to_ours",
        COMMANDS,
    ),
    _row(
        "`train checkpoint=RUN`, a value for a group of settings",
        "the error names a setting of the group, and those that take a run",
        "test_a_value_of_another_type_is_answered_with_what_the_setting_is",
        COMMANDS,
    ),
    _row(
        "`resume=RUN`, a run directory",
        "its newest checkpoint",
        "test_a_run_can_be_resumed_by_its_directory",
        CHECKPOINTS,
    ),
    _row(
        "`--help` of any command, `completion` included",
        "every setting with its meaning and bounds",
        "test_every_setting_has_a_meaning",
        "tests/cli/test_help.py",
    ),
    _row(
        "a training run in a terminal",
        "lines of 80 columns; the last one is the next command",
        "test_training_in_a_terminal_fits_80_columns_without_warnings",
        "tests/e2e/test_watched_runs.py",
    ),
    _row(
        "`evaluate` in a pipe",
        "a line of progress every 10 s, on standard error",
        "test_progress_over_images_is_a_line_every_10_seconds_on_standard_error",
        "tests/tracking/test_progress_bar.py",
    ),
    _row(
        "`runs` of a sweep",
        "a line per run with what differs: 41 runs in 60 lines",
        "test_a_sweep_is_a_line_per_run_with_what_differs",
        "tests/tracking/test_runs.py",
    ),
    _row(
        "`plan card=` with a name such as `H100 SXM` or `RTX 4090`",
        "it is known",
        "test_a_card_is_known_by_the_names_that_people_type",
        PLAN,
    ),
    _row(
        "a plan of minutes or of years",
        "durations are in a readable unit",
        "test_a_duration_is_in_a_readable_unit",
        PLAN,
    ),
    _row(
        "a network of somebody else and the validation images alone",
        "errors with 1 and 10 views; the file by image agrees",
        "test_an_imported_network_is_evaluated_on_it_and_the_file_by_image_agrees",
        VALIDATION,
    ),
    _row(
        "ImageNet-A, ImageNet-V2: some of the classes, or numbers in place of names",
        "classes are matched by name or number",
        "test_classes_are_matched_by_name_or_by_number",
        EVALUATE,
    ),
    _row(
        "ReaL: several right labels of an image",
        "each counts as right",
        "test_several_labels_of_an_image_are_all_right",
        EVALUATE,
    ),
    _row(
        "classes named 0 to 11",
        "a warning: they are sorted as text",
        "test_numbered_classes_that_are_sorted_as_text_are_warned_about",
        LAYOUTS,
    ),
    _row(
        "AVIF or JPEG 2000, and a Pillow without it",
        "the reason names the format",
        "test_a_format_that_pillow_lacks_is_named",
        "tests/data/test_decode.py",
    ),
    _row(
        "a model that is wanted back in torchvision",
        "`export format=torchvision` writes its names, or says which layer it lacks",
        "test_an_imported_model_is_exported_under_torchvisions_names",
        IMPORTERS,
    ),
    _row(
        "`net.double()`, `.half()`, `.bfloat16()`",
        "every layer computes in that type",
        "test_every_layer_computes_in_the_dtype_that_the_model_was_cast_to",
        MODEL,
    ),
    _row(
        "`print(net)`",
        "all layers and operations with their sizes",
        "test_print_shows_all_sizes",
        MODEL,
    ),
    _row(
        "a hook on an activation, a normalisation or a pooling",
        "it is called",
        "test_every_operation_is_a_module_that_takes_hooks",
        MODEL,
    ),
    _row(
        "`torch.save(net)`",
        "it works in one process",
        "test_a_saved_model_is_loaded_with_its_logits_and_dropout",
        MODEL,
    ),
    _row(
        "a trained network in Python, or as ONNX, by the examples of docs/use.md",
        "the classes are those of `predict`",
        "test_every_command_of_the_page_works_as_printed",
        "tests/project/test_use_page.py",
    ),
]

TABLES = {  # by the line that begins each on the page
    "<!-- made by tests/faults.py -->\n": ("fault", FAULTS.values()),
    "<!-- made by tests/faults.py: environments -->\n": ("environment", ENVIRONMENTS),
    "<!-- made by tests/faults.py: attempts -->\n": ("attempt", ATTEMPTS),
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
