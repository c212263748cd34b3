"""The training loop and its parts: options, optimisers, data, reports and exact state."""

from ray_deltastn.training.health import RunWarning
from ray_deltastn.training.options import Options
from ray_deltastn.training.refit import refit
from ray_deltastn.training.saved import load_schedule, load_weights
from ray_deltastn.training.settings import Settings
from ray_deltastn.training.split_metrics import over_split
from ray_deltastn.training.tuner import SelfTuner

__all__ = ["Options", "RunWarning", "SelfTuner", "Settings", "load_schedule", "load_weights", "over_split", "refit"]
