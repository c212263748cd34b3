"""Mistakes in models and losses show at once, in one line with the rule, the value got and its name."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import ray_deltastn as rd
from tests.bad_inputs.made import OneWay, assert_refused, model, tuner


class Lambda(nn.Module):
    """Applies a function to a model's output."""

    def __init__(self, function):
        super().__init__()
        self.model, self.function = model(), function

    def forward(self, x):
        return self.function(self.model(x))


def frozen():
    network = model()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network


class OwnWeights(nn.Module):
    """Trainable, but without any layer that has a rule."""

    def __init__(self):
        super().__init__()
        self.matrix, self.dropout = nn.Parameter(torch.randn(4, 3)), rd.Dropout("rate")

    def forward(self, x):
        return self.dropout(x) @ self.matrix


MODELS = {
    "no-trainable-parameter": (
        lambda: tuner(changes={"model": frozen()}),
        ValueError,
        ["`model`", "trainable parameter", "none"],
    ),
    "no-layer-that-can-respond": (
        lambda: tuner(changes={"model": OwnWeights()}),
        ValueError,
        ["`model`", "respond", "matrix", 'per="batch"'],
    ),
    "a-layer-has-no-forward-mode-rule": (
        lambda: tuner(changes={"model": OneWay()}),
        TypeError,
        ["forward-mode rule", "'delta-stn'", "layer 'memory' (Doubling)", "use 'centered-stn' or 'stn'"],
    ),
    "output-is-a-tuple": (
        lambda: tuner(changes={"model": Lambda(lambda x: (x, x))}),
        TypeError,
        ["`loss` must accept the output of `model`", "got tuple: ", "must be Tensor, not tuple"],
    ),
    "output-is-a-tuple-under-fixed": (
        lambda: tuner("fixed", changes={"model": Lambda(lambda x: (x, x))}),
        TypeError,
        ["`loss` must accept the output of `model`", "got tuple: ", "must be Tensor, not tuple"],
    ),
    "output-is-a-dictionary": (
        lambda: tuner(changes={"model": Lambda(lambda x: {"logits": x})}),
        TypeError,
        ["`loss` must accept the output of `model`", "got dict with logits: "],
    ),
    "output-without-batch": (
        lambda: tuner(changes={"model": Lambda(lambda x: x[:1])}),
        ValueError,
        ["`output.shape[0]` must be the batch size", "(1, 3)"],
    ),
    "output-is-a-scalar": (
        lambda: tuner(changes={"model": Lambda(lambda x: x.mean()), "loss": lambda output, y: output}),
        ValueError,
        ["`output.shape[0]` must be the batch size", "()"],
    ),
    "loss-of-a-wrong-shape": (
        lambda: tuner(changes={"loss": lambda output, y: output * 0}),
        ValueError,
        ["`loss` must return", "(4,)", "(4, 3)"],
    ),
    "valid-loss-of-a-wrong-shape": (
        lambda: tuner(changes={"valid_loss": lambda output, y: output * 0}),
        ValueError,
        ["`valid_loss` must return", "(4, 3)"],
    ),
    "loss-is-a-number": (
        lambda: tuner(changes={"loss": lambda output, y: 0.5}),
        ValueError,
        ["`loss` must return", "float"],
    ),
    "batch-of-one-under-batch-norm": (
        lambda: tuner(changes={"model": model(nn.BatchNorm1d(5), rd.Dropout("rate"))}, batch_size=23),
        ValueError,
        ["at least two examples", "BatchNorm1d", "one", "`batch_size`", "`train`"],
    ),
    "batches-of-one-under-batch-norm": (
        lambda: tuner(changes={"model": model(nn.BatchNorm1d(5), rd.Dropout("rate"))}, batch_size=1),
        ValueError,
        ["at least two examples", "BatchNorm1d", "one", "`batch_size`"],
    ),
    "dropout-of-a-rate-above-one": (
        lambda: rd.Task(
            space=rd.HyperSpace(rate=rd.Positive(0.1)),
            model=nn.Sequential(rd.Dropout("rate"), nn.Linear(5, 3)),
            loss=F.cross_entropy,
            train=(torch.randn(8, 5), torch.zeros(8, dtype=torch.long)),
            valid=(torch.randn(8, 5), torch.zeros(8, dtype=torch.long)),
        ),
        ValueError,
        ["`0 <= low < high <= 1`", "Dropout", "inf", "'rate'"],
    ),
    "task-in-use": (
        lambda: (lambda first: rd.SelfTuner(first.task))(tuner()),
        ValueError,
        ["`task`", "in use", "`release()`"],
    ),
    "fraction-of-a-whole-number": (
        lambda: rd.HyperSpace(k=rd.Integer(1, low=0, high=4)).fixed_values({"k": 1.5}),
        ValueError,
        ["whole number", "1.5", "'k'"],
    ),
    "schedule-that-divides-by-zero": (
        lambda: tuner(schedule={"name": "cosine", "T_max": 0}),
        ValueError,
        ["`schedule`", "CosineAnnealingLR", "T_max"],
    ),
    "fraction-of-one-under-batch-norm": (
        lambda: list(
            tuner(
                changes={"model": model(nn.BatchNorm1d(5), rd.Dropout("rate"))}, batch_size=11, response_fraction=0.5
            ).fit()
        ),
        ValueError,
        ["at least two examples", "BatchNorm1d", "one", "`response_fraction`"],
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_bad_model_or_loss_is_refused_in_one_line(case):
    assert_refused(*MODELS[case])


def hooks_of(network):
    return [name for name, m in network.named_modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize(
    ("network", "changes"),
    [(OneWay, {}), (model, {"loss": lambda output, y: output * 0}), (lambda: Lambda(lambda x: (x, x)), {})],
    ids=["forward-mode", "loss", "output"],
)
def test_refused_task_leaves_the_model_as_it_was(network, changes):
    refused = network()
    was_training = refused.training
    with pytest.raises((TypeError, ValueError)):
        tuner(changes={"model": refused, **changes})
    assert hooks_of(refused) == []
    assert all(m._pass_values is None for m in refused.modules() if isinstance(m, rd.Dropout))
    assert refused.training == was_training


def part(wrap):
    """A network of which one layer is wrapped."""
    network = model()
    network[0] = wrap(network[0])
    return network


def compiled_in_place():
    network = model()
    network.compile()
    return network


class Checkpointed(nn.Module):
    """A network that computes its layers again in the backward pass."""

    def __init__(self, reentrant):
        super().__init__()
        self.inner, self.before, self.reentrant = model(), nn.Linear(4, 4), reentrant

    def forward(self, x):
        x = self.before(x)
        return checkpoint(self.inner, x, use_reentrant=self.reentrant) if self.training else self.inner(x)


@pytest.mark.parametrize("method", ["delta-stn", "fixed"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_network_that_computes_layers_again_is_refused(reentrant, method):
    words = ["activation checkpointing must be off", "around layer 'inner' (Sequential)"]
    assert_refused(lambda: tuner(method, changes={"model": Checkpointed(reentrant)}), TypeError, words)


def test_the_look_before_the_first_step_leaves_buffers_as_they_were():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            if self.training:
                self.count += 1
            return self.inner(x)

    run = tuner(changes={"model": Counting()})
    assert run.model.count == 0
    run.step()
    assert run.model.count > 0


@pytest.mark.slow  # PyTorch's compiler takes seconds to import
@pytest.mark.parametrize("make", [lambda: torch.compile(model()), compiled_in_place, lambda: part(torch.compile)])
def test_a_compiled_network_is_refused_with_what_to_do(make):
    words = ["`model` must not be compiled", "before `torch.compile`", "`graph`"]
    assert_refused(lambda: tuner(changes={"model": make()}), TypeError, words)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("wrap", [torch.jit.script, lambda layer: torch.jit.trace(layer, torch.ones(1, 4))])
def test_a_scripted_layer_is_refused_with_its_name(wrap):
    words = ["`model` must not be scripted or traced", "'0'", "before `torch.jit`"]
    assert_refused(lambda: tuner(changes={"model": part(wrap)}), TypeError, words)


class Parallel(nn.DataParallel):
    """A class of a user."""


@pytest.mark.parametrize("wrap", [nn.DataParallel, Parallel])
def test_a_network_on_several_devices_is_refused_with_the_one_inside(wrap):
    words = ["`model` must not be spread over devices", f"got {wrap.__name__};", "`model.module`"]
    assert_refused(lambda: tuner(changes={"model": wrap(model())}), TypeError, words)


def test_a_network_with_a_lazy_layer_is_refused_with_the_parameter():
    words = ["`model` must have parameters with shapes, got '0.weight'", "call the model once"]
    assert_refused(lambda: tuner(changes={"model": part(lambda _: nn.LazyLinear(5))}), ValueError, words)
