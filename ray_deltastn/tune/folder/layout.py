"""Names of the files in the results folder, and the error for a folder that cannot be used."""

from ray_deltastn.training import tables

#: The configuration of the experiment, and the hyperparameters of its task.
CONFIG_FILE, SPACE_FILE = tables.CONFIG_FILE, tables.SPACE_FILE
#: Folders in which the command looked for the task's module.
CODE_FILE = "code.json"
#: All reports of all trials. The experiment has ended if `RESULTS_FILE` exists.
RESULTS_FILE, PARQUET_FILE = tables.RESULTS_FILE, tables.PARQUET_FILE
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
#: Folder of the networks that `refit` has trained.
REFIT_FOLDER = "refit"
#: The prefix of Tune's checkpoint folders.
CHECKPOINT = "checkpoint_"


#: A comparison, and its folder of experiments.
COMPARISON_FILE, RUNS_FOLDER = "comparison.json", "runs"


class ResumeError(RuntimeError):
    """An experiment cannot be resumed, or would be overwritten; the message is one line."""
