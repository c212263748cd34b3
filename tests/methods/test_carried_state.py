"""State that is carried from segment to segment: where each pass begins, against an unrolled oracle in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import ray_deltastn as rd
from ray_deltastn.methods import Objective, StepOptions, Steps, get_method
from ray_deltastn.regularizers import PassValues
from ray_deltastn.response import Response
from tests.methods.unrolled_language_models import Run, Unrolled
from tests.oracles import assert_close, window
from tests.training.recurrent import UNITS, GRUModel, corpus, make_task, make_tuner

WAYS = [
    ("delta-stn", "linearized"),
    ("delta-stn", "network"),
    ("centered-stn", "linearized"),
    ("stn", "linearized"),
]


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize(("method", "hyper_pass"), WAYS)
def test_three_segments_equal_the_unrolled_oracle(kind, method, hyper_pass):
    run = Run(kind, method, hyper_pass)
    oracle = Unrolled(run, kind)
    for _ in range(3):
        for step in ("train_step", "hyper_step"):
            before, expected_before = run.numbers(), oracle.numbers()
            assert_close(getattr(run, step)(), getattr(oracle, step)())
            for name, number in oracle.numbers().items():
                now, move = run.numbers()[name], number - expected_before[name]
                if move.norm() > 0:  # a gradient, or the move of a state
                    assert_close(now - before[name], move)
                else:
                    assert torch.equal(now, before[name]), name


#: Sequences that train Θ in the first step if half of them do.
HALF = window(8, 4, torch.Generator().manual_seed(0))


class Echo(nn.Module):
    """A model that notes which state each row of tokens comes with."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(8, 8)
        self.seen = []

    def forward(self, tokens, state):
        self.seen.append((tokens[:, 0].tolist(), state[0].tolist()))
        return (self.table(tokens) + state[0][:, None, None]).transpose(1, 2), (state[0] + 100, state[1])


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"response_fraction": 0.5}, [HALF]),
        ({"antithetic": True}, [HALF + HALF]),
        ({"perturbations": 2}, [[*range(8), *range(8)]]),
        ({"sub_batches": 2}, [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ],
    ids=str,
)
def test_examples_that_train_the_response_have_their_own_state(options, passes):
    model, space = Echo(), rd.HyperSpace(decay=rd.Positive(0.1))
    objective = Objective(
        model,
        F.cross_entropy,
        space,
        PassValues(space, torch.Generator().manual_seed(0)),
        get_method("centered-stn"),
        Response(model, 1),
        penalty=[rd.L2("decay")],
        carries=True,
    )
    still = [torch.optim.SGD(of.parameters(), 0.1) for of in (model, objective.response)]
    steps = Steps(objective, *still, options=StepOptions(**options))
    tokens = torch.arange(8)[:, None].expand(8, 3).contiguous()
    x = (tokens, (torch.arange(8.0) * 10, torch.zeros(8, 2)))
    steps.train_step(x, tokens)
    assert [words for words, _ in model.seen] == [list(range(8)), *passes]
    assert all(state == [10.0 * word for word in words] for words, state in model.seen)
    assert torch.equal(x[1][0], torch.arange(8.0) * 10 + 100)


def test_a_state_may_move_from_one_place_to_another():
    space = rd.HyperSpace(decay=rd.Positive(0.1))
    objective = Objective(
        nn.Linear(1, 1), F.mse_loss, space, PassValues(space), get_method("fixed"), None, carries=True
    )
    new, old, x = torch.ones(2), torch.zeros(2), torch.zeros(2, 1)
    objective.carry((x, {"old": old, "new": new}), {"new": torch.full((2,), 5.0), "old": new})
    assert torch.equal(new, torch.full((2,), 5.0))
    assert torch.equal(old, torch.ones(2))


@pytest.mark.parametrize("method", ["ift", "unrolled"])
def test_methods_without_a_response_begin_at_the_states_of_training(method):
    """Their hypergradient after three segments, the last one shorter, against one that is written out."""
    rate = 0.1
    state = {"h": torch.linspace(-0.4, 0.5, UNITS, dtype=torch.float64)}
    task = make_task(
        "gru",
        torch.float64,
        space=rd.HyperSpace(decay=rd.Positive(0.1)),
        model=GRUModel(dropout=False).double(),
        train=rd.Segments(corpus(39, 1), 3, 5, state),
        valid=rd.Segments(corpus(26, 2), 2, 5, state),
        test=None,
    )
    given = {"train_interval": 3, "implicit_solver": "neumann", "implicit_steps": 1, "momentum": 0.0}
    tuner = make_tuner(task, method, lr=rate, **given)
    model = tuner.model
    lam = tuner.space.lam.detach().clone().requires_grad_()
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}

    def loss_of(weights, tokens, y, h, strength):
        output, left = functional_call(model, weights, (tokens, {"h": h}))
        decay = 0.5 * strength * sum(w.square().sum() for w in weights.values())
        return F.cross_entropy(output, y) + decay, left["h"].detach()

    segments, h = [], state["h"].expand(3, -1)
    for _ in range(3):
        x, y = tuner.train.next()
        segments.append((x[0], y, h))
        tuner.model.train()
        tuner.algorithm.train_step(x, y)
        loss, h = loss_of(weights, *segments[-1], lam[0].exp())
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {name: w - rate * g for (name, w), g in zip(weights.items(), gradients, strict=True)}
        assert_close(x[1]["h"], h)
    (tokens, valid_state), y = tuner.valid.next()
    valid = (tokens, y, valid_state["h"].clone())
    tuner.model.eval()
    _, found = tuner.algorithm.hypergradient((tokens, valid_state), y)
    if method == "unrolled":
        (expected,) = torch.autograd.grad(loss_of(weights, *valid, 0.0)[0], lam)
    else:
        weights = {name: w.detach().requires_grad_() for name, w in weights.items()}
        every = list(weights.values())
        train_loss = torch.stack([loss_of(weights, *one, lam[0].exp())[0] for one in segments]).mean()
        gradient = torch.autograd.grad(train_loss, every, create_graph=True)
        b = torch.autograd.grad(loss_of(weights, *valid, 0.0)[0], every)
        image = torch.autograd.grad(gradient, every, b, retain_graph=True)
        q = [rate * (2 * one - rate * other) for one, other in zip(b, image, strict=True)]
        (expected,) = torch.autograd.grad(gradient, lam, [-part for part in q])
    assert_close(found, expected)


def test_methods_without_a_response_leave_the_state_of_validation():
    task = make_task("gru", space=rd.HyperSpace(decay=rd.Positive(0.1)), model=GRUModel(dropout=False))
    tuner = make_tuner(task, "unrolled", warmup_steps=0)
    tuner.model.train()
    for _ in range(2):
        tuner.algorithm.train_step(*tuner.train.next())
    tuner.model.eval()
    x, y = tuner.valid.next()
    with torch.no_grad():
        expected = tuner.model(x[0], {"h": x[1]["h"].clone()})[1]["h"]
    tuner.algorithm.hyper_step(x, y)
    assert torch.equal(tuner.valid.next()[0][1]["h"], expected)
