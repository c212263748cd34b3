"""The problems: a ready task with its options and the options of training that all contenders share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

#: Options of STN, centred STN and the paper's Δ-STN: λ by Adam at 0.01, σ = 1, a hyper step after two train steps. The
#: paper gives the first two for its language model; the third is that of the code of MacKay et al. (2019).
PAPER: dict[str, Any] = {
    "preset": "paper",
    "hyper_optimizer": "adam",
    "hyper_lr": 0.01,
    "tune_scale": False,
    "train_interval": 2,
}


@dataclass(frozen=True)
class Problem:
    """A problem.

    Attributes:
        task: name of the ready task.
        options: options of the task.
        training: options of `SelfTuner` that all contenders share.
        warmup: epochs of warm-up of self-tuned runs.
        constants: hyperparameters of the plain run.
        bits: whether scores are bits per character, not perplexities.
        picture: the hyperparameters of the picture of the schedules, in groups with a common axis.
    """

    task: str
    options: Mapping[str, Any]
    training: Mapping[str, Any]
    warmup: float
    constants: Mapping[str, float]
    bits: bool = False
    picture: tuple[tuple[str, ...], ...] = ()


PROBLEMS = {
    "lstm": Problem(
        task="ptb-lstm",
        options={
            "limit": 20_000,
            "least_count": 2,
            "units": 200,
            "embedding": 200,
            "batch": 20,
            "length": 35,
        },
        training={
            "epochs": 30,
            "lr": 30.0,
            "momentum": 0.0,
            "clip_grad": 0.25,
            "schedule": {"name": "plateau", "factor": 0.25, "patience": 5},
        },
        warmup=4.0,
        # The best constant that MacKay et al. (2019) found by grid search.
        constants={
            "embedding_dropout": 0.0,
            "input_dropout": 0.0,
            "hidden_dropout": 0.0,
            "output_dropout": 0.68,
            "dropconnect": 0.0,
            "activation": 0.0,
            "temporal_activation": 0.0,
        },
        picture=(
            ("embedding_dropout", "input_dropout", "hidden_dropout", "output_dropout", "dropconnect"),
            ("activation", "temporal_activation"),
        ),
    ),
    "transformer": Problem(
        task="char-transformer",
        options={"limit": 20_000, "width": 64, "heads": 4, "layers": 4, "batch": 16, "length": 64, "least_count": 2},
        training={"epochs": 50, "optimizer": "adam", "lr": 0.003},
        warmup=4.0,
        # The rate of Vaswani et al. (2017).
        constants={
            "embedding_dropout": 0.1,
            "attention_dropout": 0.1,
            "residual_dropout": 0.1,
            "mlp_dropout": 0.1,
            "embedding_decay": 1e-7,
            "attention_decay": 1e-7,
            "mlp_decay": 1e-7,
        },
        bits=True,
        picture=(
            ("embedding_dropout", "attention_dropout", "residual_dropout", "mlp_dropout"),
            ("embedding_decay", "attention_decay", "mlp_decay"),
        ),
    ),
}

#: The problems that take minutes; those below take hours.
SMALL = tuple(PROBLEMS)


def _larger(problem: Problem, options: Mapping[str, Any], warmup: float, **training: Any) -> Problem:
    return replace(
        problem, options={**problem.options, **options}, training={**problem.training, **training}, warmup=warmup
    )


PROBLEMS["lstm-100k"] = _larger(PROBLEMS["lstm"], {"limit": 100_000}, warmup=2.0, epochs=12)
PROBLEMS["transformer-300k"] = _larger(
    PROBLEMS["transformer"], {"limit": 300_000, "width": 128, "batch": 8}, warmup=1.0, epochs=20, lr=0.001
)

#: Trials of random search.
TRIALS = 8
#: Self-tuned contenders, and their options.
TUNED: dict[str, dict[str, Any]] = {
    "stn": {"method": "stn", **PAPER},
    "centered-stn": {"method": "centered-stn", **PAPER},
    "delta-stn paper": {"method": "delta-stn", **PAPER},
    "delta-stn": {"method": "delta-stn", "preset": "recommended", "train_interval": 2},
}
#: All contenders, in the order in which they run.
CONTENDERS = ("none", "plain", "initial", "delta-stn", "delta-stn paper", "stn", "centered-stn", "random")
