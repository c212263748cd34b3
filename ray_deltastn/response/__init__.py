"""Structured responses of a network's parameters to hyperparameters, and the linearised two-stream pass."""

from ray_deltastn.response.coverage import Coverage
from ray_deltastn.response.kinds import register_kind
from ray_deltastn.response.linearise import linearised_forward
from ray_deltastn.response.response import Response
from ray_deltastn.response.weights import Weights, named_parameters

__all__ = [
    "Coverage",
    "Response",
    "Weights",
    "linearised_forward",
    "named_parameters",
    "register_kind",
]
