"""Names of the files in the results folder, and the errors of an experiment as a whole."""

from pathlib import Path

from ray_deltastn.training import file_names

#: The configuration of the experiment, and the hyperparameters of its task.
CONFIG_FILE, SPACE_FILE = file_names.CONFIG_FILE, file_names.SPACE_FILE
#: What the task's data must have in common on resume, such as a vocabulary; missing if the task names nothing.
IDENTITY_FILE = "identity.json"
#: Folders in which the command looked for the task's module.
CODE_FILE = "code.json"
#: All reports of all trials. The experiment has ended if `RESULTS_FILE` exists.
RESULTS_FILE, PARQUET_FILE = file_names.RESULTS_FILE, file_names.PARQUET_FILE
#: Every report, one line each, written when it arrives.
LOG_FILE = "reports.jsonl"
#: Seconds of the searcher and of the whole experiment, measured in the driver.
DRIVER_FILE = "driver.json"
#: Copies of states between trials by population-based training.
LINEAGE_FILE = "lineage.csv"
#: Lock file; a command holds it while it runs the experiment.
LOCK_FILE = ".lock"
#: Tune's folder of trials, and the package's copies of Tune's states.
TRIALS_FOLDER, STATES_FOLDER = "trials", "states"
#: The page of an experiment or a comparison.
PAGE = "report.html"
#: Folder of the networks that `refit` has trained.
REFIT_FOLDER = "refit"
#: Folder of the control of an experiment, an experiment with one trial.
CONTROL_FOLDER = "control"
#: The prefix of Tune's checkpoint folders.
CHECKPOINT = "checkpoint_"
#: The prefix of Tune's experiment states.
STATE_PREFIX = "experiment_state-"

#: A comparison, and its folder of experiments.
COMPARISON_FILE, RUNS_FOLDER = "comparison.json", "runs"


class ResumeError(RuntimeError):
    """An experiment cannot be resumed, or would be overwritten; the message is one line."""


class TrialsFailedError(RuntimeError):
    """Every trial of an experiment has failed; the message is one line with the error of the first."""


def state_files(folder: Path) -> list[Path]:
    """Tune's experiment states in a folder, the newest last; each run of an experiment writes one file."""
    return sorted(folder.glob(f"{STATE_PREFIX}*.json"))
