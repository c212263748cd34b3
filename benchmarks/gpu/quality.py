"""Quality: plain training, random search and Δ-STN for SimpleCNN, with the device-seconds of each run.

The images are some of FashionMNIST if `RAY_DELTASTN_DATA` names a folder that has them, and made-up images with wrong
labels if not; rows say which. All runs have the same number of epochs, which the first piece chooses from the time of
one epoch.
Hyperparameters are tuned on the validation split. A run's result is the report with the best validation loss. Device-
seconds are those of train steps, hyper steps and evaluations.
"""

from __future__ import annotations

import os
import time
from functools import cache, partial
from typing import Any

import torch

import ray_deltastn as rd
from benchmarks.gpu.items import Findings, Item, NoTime, Place
from benchmarks.gpu.networks import Split, pictures
from benchmarks.images import draw
from ray_deltastn.tasks.cache import ROOT_VARIABLE
from ray_deltastn.tasks.image_sets import load_images
from ray_deltastn.tasks.images import FASHION_CNN, hold_out, task_of
from ray_deltastn.training.columns import SECONDS

RANDOM, SEEDS = 8, 3
#: Images of FashionMNIST for training and validation together, as in `configs/fashion_10k_compare.yaml`.
IMAGES = 10_000
#: Smallest and largest number of epochs.
LEAST, MOST = 10, 200
#: Plain runs that take as long as all pieces, if a self-tuned run takes three times as long as a plain one.
PLAIN_RUNS = 1 + RANDOM + 3 * SEEDS
#: Made-up images: standard deviation of the noise, and share of wrong labels.
NOISE, WRONG = 1.5, 0.2
Splits = tuple[Split, Split, Split]


@cache
def splits(tiny: bool) -> tuple[str, Splits]:
    """Name of the images, and the training, validation and test split."""
    if os.environ.get(ROOT_VARIABLE) and not tiny:
        try:
            train, test = load_images("fashion_mnist")
        except FileNotFoundError:
            pass
        else:
            return f"{IMAGES:,} of FashionMNIST", (*hold_out(train, 0.15, 0, IMAGES), test)
    counts = (64, 64, 64) if tiny else (6000, 3000, 6000)
    every = pictures(sum(counts), 1, 28, 0, NOISE, WRONG)
    x, y = (torch.sigmoid(every[0]).split(counts), every[1].split(counts))
    return "made-up images", ((x[0], y[0]), (x[1], y[1]), (x[2], y[2]))


def started(place: Place, method: Any, epochs: int, seed: int = 0, draw_number: int | None = None) -> rd.SelfTuner:
    """A new run.

    Args:
        place: where to train.
        method: name of a method.
        epochs: passes over the training data.
        seed: seed of the initial weights and of the run.
        draw_number: number of the constants that random search draws; None for the initial values.
    """
    torch.manual_seed(seed)
    task = task_of(FASHION_CNN, *splits(place.tiny)[1], {})
    options: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": 16 if place.tiny else 128,
        "lr": 0.01,
        "warmup": "auto",
        "graph": "auto",
        "device": place.device,
        "seed": seed,
        "hyperparameters": {} if draw_number is None else draw(task.space, draw_number),
    }
    return rd.SelfTuner(task, method, **options)


def choose_epochs(place: Place, findings: Findings) -> None:
    """The number of epochs with which all runs take about as long as the part has."""
    tuner = started(place, "fixed", 4)
    seconds = [report[SECONDS("total")] for report in tuner.fit()]
    each = (seconds[-1] - seconds[1]) / 2  # the first epoch captures the steps
    epochs = 2 if place.tiny else min(MOST, max(LEAST, int(0.8 * place.left / (PLAIN_RUNS * each))))
    findings.note(epochs=epochs, seconds_of_an_epoch=each, images=splits(place.tiny)[0])
    findings.note(text=f"{epochs} epochs of {splits(place.tiny)[0]}, {each:.2f} s each for plain training")


def train(place: Place, findings: Findings, method: str, times: float, **options: Any) -> None:
    """Train a run to its end.

    Args:
        place: where to train.
        findings: the figures.
        method: name of a method.
        times: seconds of the run in units of a plain run, as far as known before.
        options: see `started`.
    """
    chosen = place.rows["epochs"]["figures"]
    if not place.tiny and place.left < times * chosen["epochs"] * chosen["seconds_of_an_epoch"]:
        raise NoTime
    began = time.perf_counter()
    tuner = started(place, method, chosen["epochs"], **options)
    reports = list(tuner.fit())
    best = min(reports, key=lambda report: float(report["valid_loss"]))
    found = {name: best[name] for name in ("epoch", "valid_loss", "test_loss", "test_accuracy")}
    findings.note(
        method=method,
        **found,
        last_valid_loss=reports[-1]["valid_loss"],
        device_seconds=reports[-1][SECONDS("total")],
        wall_seconds=time.perf_counter() - began,
        hyperparameters=tuner.hyperparameters(),
        images=chosen["images"],
        epochs=chosen["epochs"],
    )
    findings.must("finite", not reports[-1]["diverged"] or method == "fixed")
    seconds = f"{reports[-1][SECONDS('total')]:.1f} device-seconds"
    findings.note(text=f"valid {best['valid_loss']:.4f}, test {best['test_loss']:.4f}, {seconds}")


def items(tiny: bool) -> list[Item]:
    """The runs, those that say most first."""

    def run(name: str, method: str, times: float, **options: Any) -> Item:
        return Item(name, partial(train, method=method, times=times, **options), 2.0, 600.0)

    drawn = [run(f"random {n}", "fixed", 1.2, draw_number=n) for n in range(1 if tiny else RANDOM)]
    tuned = [run(f"delta-stn, seed {s}", "delta-stn", 4.0, seed=s) for s in range(1 if tiny else SEEDS)]
    return [Item("epochs", choose_epochs, 5.0), run("plain", "fixed", 1.2), *tuned[:1], *drawn, *tuned[1:]]
