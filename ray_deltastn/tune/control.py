"""The control of an experiment: one more trial with the options of the best trial, and without tuning.

It has the same data, network, seed, epochs and outer options as the best trial, and the initial hyperparameters as
constants. It is an experiment with one trial, in a folder inside the results folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_deltastn.training.tables import ranked
from ray_deltastn.tune.config import ExperimentConfig, TuneSection, option_of
from ray_deltastn.tune.console import PlainConsole
from ray_deltastn.tune.experiment import run_experiment
from ray_deltastn.tune.folder.layout import CONTROL_FOLDER, RESULTS_FILE, STATES_FOLDER, TRIALS_FOLDER, state_files
from ray_deltastn.tune.folder.log import last_of_each, read_log
from ray_deltastn.tune.folder.results import read_results
from ray_deltastn.tune.guards import check_saved, unfinished
from ray_deltastn.tune.nested import merged, nest


def run_with_control(
    config: ExperimentConfig,
    out: Path,
    resume: bool = False,
    trust: bool = False,
    address: str | None = None,
    code: Sequence[Path] = (),
) -> None:
    """Run an experiment, and then its control if the configuration asks for one.

    Args:
        config: the experiment.
        out: results folder.
        resume: continue the experiment in `out`; if only its control is missing or interrupted, continue that.
        trust: see `run_experiment`.
        address: see `run_experiment`.
        code: see `run_experiment`.

    Raises:
        ResumeError: see `run_experiment`, which raises other errors too.
    """
    out = out.resolve()
    folder = out / CONTROL_FOLDER
    if resume and config.control and (out / RESULTS_FILE).exists() and not (folder / RESULTS_FILE).exists():
        check_saved(config, out)
    else:
        run_experiment(config, out, resume, trust, address, code)
    if not config.control or (folder / RESULTS_FILE).exists():
        return
    if unfinished(folder) and not any(map(state_files, (folder / TRIALS_FOLDER, folder / STATES_FOLDER))):
        shutil.rmtree(folder)  # it was killed before Tune wrote a state, so it starts again
    PlainConsole(soft_wrap=True).print("control: the best trial's options, without tuning")
    run_experiment(control_of(config, best_config(config, out)), folder, unfinished(folder), trust, address, code)


def best_config(config: ExperimentConfig, out: Path) -> dict[str, Any]:
    """The config of the best trial of a finished experiment at its last report.

    Args:
        config: the experiment.
        out: results folder.
    """
    best = ranked(read_results(out / RESULTS_FILE), config.tune.metric, config.tune.mode).iloc[0]
    return last_of_each(read_log(out)[str(best["trial_id"])])[-1].config


def control_of(config: ExperimentConfig, best: Mapping[str, Any]) -> ExperimentConfig:
    """The experiment of the control.

    Args:
        config: the experiment.
        best: config of its best trial, which has a value for every searched option.
    """
    outer = [name for name in config.search if name.split(".")[0] not in ("hyperparameters", "method")]
    chosen = nest({name: _value_at(best, option_of(name)) for name in outer})
    options = chosen.pop("options", {})
    same = {"metric", "mode", "workers", "cpu", "gpu", "checkpoint_every", "max_failures", "seed"}
    given = config.tune.model_dump(include=same)
    return ExperimentConfig(
        task=config.task,
        options=merged(config.options, options),
        train={**merged(config.train, chosen), "method": "fixed"},
        tune=TuneSection(**given, searcher="random", num_samples=1),
    )


def _value_at(config: Mapping[str, Any], name: str) -> Any:
    found: Any = config
    for part in name.split("."):
        found = found[part]
    return found
