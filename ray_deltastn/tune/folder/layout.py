"""Names of the files in the folder of an experiment, and the error of a folder that cannot be used."""

#: The experiment as it was asked for, and the hyperparameters of its task.
CONFIG_FILE, SPACE_FILE = "config.json", "space.json"
#: All reports of all trials; the experiment has ended when the first of the two is there.
RESULTS_FILE, PARQUET_FILE = "results.csv", "results.parquet"
#: Reports as they come, one line each.
LOG_FILE = "reports.jsonl"
#: What the driver itself has spent, in seconds.
DRIVER_FILE = "driver.json"
#: Which trial took over whose state under population-based training.
LINEAGE_FILE = "lineage.csv"
#: Held while a command runs the experiment.
LOCK_FILE = ".lock"
#: Tune's own folder of trials, and our copies of its states.
TRIALS_FOLDER, STATES_FOLDER = "trials", "states"
#: State of a trial in its checkpoint, and how Tune's names of checkpoint folders begin.
STATE_FILE, CHECKPOINT = "deltastn.pt", "checkpoint_"


class ResumeError(RuntimeError):
    """An experiment that cannot be continued, or that would be overwritten; the message is one line."""
