"""Names of the files of an experiment, in a module that imports nothing."""

#: The configuration of an experiment, the hyperparameters of its task, and all reports of all trials.
CONFIG_FILE, SPACE_FILE, RESULTS_FILE, PARQUET_FILE = "config.json", "space.json", "results.csv", "results.parquet"
