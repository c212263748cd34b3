"""The methods: `fixed`, `stn`, `centered-stn`, `delta-stn`; one code path, small differences."""

from ray_deltastn.methods.frozen import RunningStatistics
from ray_deltastn.methods.method import METHODS, Method, get_method
from ray_deltastn.methods.objective import Loss, Objective
from ray_deltastn.methods.steps import Steps

__all__ = ["METHODS", "Loss", "Method", "Objective", "RunningStatistics", "Steps", "get_method"]
