"""Cost of a cycle (5 train steps, 1 hyper step) over 5 plain steps: matmul and convolution FLOPs, saved memory."""

import functools
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock, ResNet

from benchmarks.speed import unfused
from ray_deltastn.domains import Bounded, Positive
from ray_deltastn.methods import Objective, StepOptions, Steps, get_method
from ray_deltastn.regularizers import L2, Dropout, PassValues, Regularizer
from ray_deltastn.response import Response
from ray_deltastn.space import HyperSpace
from ray_deltastn.tasks.language_networks import LSTMModel


def mlp():
    return nn.Sequential(
        nn.Flatten(),
        Dropout("rate"),
        nn.Linear(784, 256),
        nn.ReLU(),
        Dropout("rate"),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def cnn():
    return nn.Sequential(
        Dropout("rate"),
        nn.Conv2d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1568, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def resnet18():
    """ResNet-18 for CIFAR, with a 3×3 stem and no pooling after the stem."""
    model = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


class Language(LSTMModel):
    """The network of `ptb-lstm` at a thirteenth of its words and units, on sequences that begin with zeros."""

    def forward(self, tokens):
        return super().forward(tokens, tuple((h.expand(len(tokens), -1),) * 2 for h, _ in self.first_state()))[0]


NETWORKS = {"mlp": (mlp, (16, 1, 28, 28)), "cnn": (cnn, (8, 1, 28, 28)), "resnet18": (resnet18, (4, 3, 32, 32))}
#: Tokens (B, T), with the 70 steps of the paper.
SEQUENCES = {
    f"lstm {kind}": (functools.partial(Language, 770, 50, 50, tied=kind == "tied"), (4, 70))
    for kind in ("tied", "untied")
}


def make(name, method, fraction=1.0):
    build, shape = {**NETWORKS, **SEQUENCES}[name]
    torch.manual_seed(0)
    model = build()
    own = {own for m in model.modules() if isinstance(m, Regularizer) for own in m.names} - {"rate", "decay"}
    rates = {
        n: Bounded(0.05, low=0.0, high=0.95, per="batch" if n == "dropconnect" else "example") for n in sorted(own)
    }
    space = HyperSpace(rate=Bounded(0.05, low=0.0, high=0.95), decay=Positive(1e-4), **rates)
    pass_values = PassValues(space)
    for module in model.modules():
        if isinstance(module, Regularizer):
            module.bind(pass_values)
    method = get_method(method)
    response = Response(model, len(space)) if method.responds else None
    objective = Objective(model, F.cross_entropy, space, pass_values, method, response, penalty=[L2("decay")])
    stepper = Steps(
        objective,
        torch.optim.SGD(model.parameters(), lr=0.01),
        torch.optim.SGD(response.parameters(), lr=0.01) if response else None,
        torch.optim.RMSprop(space.parameters(), lr=0.01) if response else None,
        StepOptions(response_fraction=fraction),
    )
    if name in SEQUENCES:
        return stepper, torch.randint(0, 770, shape), torch.randint(0, 770, shape)
    return stepper, torch.randn(shape), torch.randint(0, 10, shape[:1])


def count(action):
    with unfused(), FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


@functools.cache
def train_flops(name, method, fraction=1.0):
    """FLOPs of one train step; all steps of a kind cost the same."""
    stepper, x, y = make(name, method, fraction)
    return count(lambda: stepper.train_step(x, y))


@functools.cache
def hyper_flops(name, method):
    stepper, x, y = make(name, method)
    stepper.objective.model.eval()
    return count(lambda: stepper.hyper_step(x, y))


def cycle_over_plain(name, method, fraction=1.0):
    cycle = 5 * train_flops(name, method, fraction) + hyper_flops(name, method)
    return cycle / (5 * train_flops(name, "fixed"))


@pytest.mark.parametrize("name", NETWORKS)
def test_cycle_costs_at_most_three_times_plain_training(name):
    assert 2.0 < cycle_over_plain(name, "delta-stn") <= 3.0


@pytest.mark.parametrize(("name", "most"), [("lstm untied", 3.0), ("lstm tied", 3.15)])
def test_cycle_of_an_lstm_with_seventy_steps(name, most):
    # A decoder with the weight of the embedding responds per column, which takes one more product of matrices.
    assert 2.0 < cycle_over_plain(name, "delta-stn") <= most


@pytest.mark.parametrize("name", NETWORKS)
def test_cycle_costs_at_most_1_7_times_plain_training_with_a_quarter_of_each_minibatch(name):
    assert 1.2 < cycle_over_plain(name, "delta-stn", fraction=0.25) <= 1.7


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", ["centered-stn", "delta-stn"])
def test_weights_pass_evaluates_no_response_branch(name, method):
    def weights_pass(stepper, x, y):
        return count(lambda: torch.autograd.grad(stepper.objective.train_loss(x, y), stepper.weights))

    assert weights_pass(*make(name, method)) == train_flops(name, "fixed")
    assert weights_pass(*make(name, "fixed")) == train_flops(name, "fixed")


def test_steps_of_a_kind_cost_the_same():
    stepper, x, y = make("mlp", "delta-stn")
    costs = {count(lambda: stepper.train_step(x, y)) for _ in range(3)}
    assert costs == {train_flops("mlp", "delta-stn")}
    assert count(lambda: nn.Linear(3, 2)(torch.randn(4, 3))) == 2 * 4 * 3 * 2  # check of the counter


# --- memory --------------------------------------------------------------------------------------------------------


class Held:
    """One tensor saved by the graph. It is freed with the node that saves it."""

    def __init__(self, tensor):
        self.tensor = tensor


@unfused()
def saved_bytes(stepper, forward):
    """Bytes that autograd saves for the backward pass. Each storage counts once, and parameters do not count."""
    parameters = {p.untyped_storage().data_ptr() for p in [*stepper.weights, *stepper.response]}
    references = []

    def keep(tensor):
        held = Held(tensor)
        references.append(weakref.ref(held))
        return held

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held.tensor):
        loss = forward()
    assert loss.requires_grad
    held = [reference() for reference in references]
    storages = [h.tensor.untyped_storage() for h in held if h is not None]
    sizes = {s.data_ptr(): s.nbytes() for s in storages}
    return sum(size for pointer, size in sizes.items() if pointer not in parameters)


def response_pass(stepper, x, y):
    """Bytes that the Θ pass of a train step saves before its backward pass."""
    found = []
    train_loss = stepper.objective.train_loss

    def watched(x, y, eps=None):
        if eps is None:
            return train_loss(x, y)
        losses = []
        found.append(saved_bytes(stepper, lambda: losses.append(train_loss(x, y, eps)) or losses[0]))
        return losses[0]

    stepper.objective.train_loss = watched
    stepper.train_step(x, y)
    return found[0]


@pytest.mark.parametrize("name", [*NETWORKS, *SEQUENCES])
def test_saved_memory_is_at_most_two_and_a_half_times_plain(name):
    plain, x, y = make(name, "fixed")
    stepper, *_ = make(name, "delta-stn")
    ratio = response_pass(stepper, x, y) / saved_bytes(plain, lambda: plain.objective.train_loss(x, y))
    assert ratio <= 2.5


@pytest.mark.parametrize("method", ["centered-stn", "delta-stn"])
def test_parameters_that_do_not_move_need_no_gradient(method):
    stepper, x, y = make("mlp", method)
    seen = []

    def watching(output, target):
        seen.append([any(p.requires_grad for p in group) for group in (stepper.weights, stepper.response)])
        return F.cross_entropy(output, target)

    stepper.objective.loss = stepper.objective.valid_loss = watching
    stepper.train_step(x, y)
    stepper.objective.model.eval()
    stepper.hyper_step(x, y)
    assert seen == [[True, True], [False, True], [False, False]]  # the w₀ pass, the Θ pass, the hyper step
    assert all(p.requires_grad for p in [*stepper.weights, *stepper.response])
