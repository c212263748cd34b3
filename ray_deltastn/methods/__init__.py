"""The methods: `fixed`, `stn`, `centered-stn` and `delta-stn`, which share one code path, and `ift` and `unrolled`."""

from ray_deltastn.methods.alternatives import ImplicitSteps, UnrolledSteps
from ray_deltastn.methods.differentiation import conjugate_gradient, implicit_hypergradient, neumann, unroll
from ray_deltastn.methods.frozen import RunningStatistics
from ray_deltastn.methods.method import METHODS, Method, MethodName, get_method
from ray_deltastn.methods.objective import Loss, Objective
from ray_deltastn.methods.steps import HyperPass, StepOptions, Steps
from ray_deltastn.methods.workers import Workers

__all__ = [
    "METHODS",
    "HyperPass",
    "ImplicitSteps",
    "Loss",
    "Method",
    "MethodName",
    "Objective",
    "RunningStatistics",
    "StepOptions",
    "Steps",
    "UnrolledSteps",
    "Workers",
    "conjugate_gradient",
    "get_method",
    "implicit_hypergradient",
    "neumann",
    "unroll",
]
