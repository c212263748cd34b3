"""bfloat16 autocast gives the gradients and the schedule of float32, up to rounding errors."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd
from ray_deltastn.methods import METHODS, Objective, get_method
from ray_deltastn.regularizers import PassValues
from ray_deltastn.response import Response
from ray_deltastn.tasks import build_task
from ray_deltastn.tasks.digits import digits
from tests.networks import NETWORKS
from tests.oracles import randomise

RESPONDING = [name for name, method in METHODS.items() if method.responds]


def response_gradient(network, method, half, training):
    model, x = network(batch=8)
    model = model.float().train(training)
    x = x.float() if x.is_floating_point() else x
    response = randomise(Response(model, 2)).float()
    space = rd.HyperSpace(a=rd.Unbounded(0.1), b=rd.Unbounded(0.2))
    objective = Objective(
        model, lambda out, y: out.square().mean(), space, PassValues(space), get_method(method), response, half=half
    )
    torch.manual_seed(3)
    eps = torch.randn(8, 2)
    torch.manual_seed(4)
    loss = objective.train_loss(x, x, eps)
    assert loss.dtype == torch.float32
    found = torch.autograd.grad(loss, list(response.parameters()), allow_unused=True)
    assert all(g.dtype == torch.float32 for g in found if g is not None)
    return torch.cat([g.flatten() for g in found if g is not None])


# PyTorch's autocast does not know bilinear layers.
@pytest.mark.parametrize("network", [n for n in NETWORKS if n.name != "bilinear"], ids=lambda network: network.name)
@pytest.mark.parametrize("method", ["stn", "delta-stn"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_response_gradients_agree_with_float32(network, method, training):
    exact, half = (response_gradient(network, method, half, training) for half in (False, True))
    assert not torch.equal(exact, half)
    assert torch.cosine_similarity(exact, half, 0) > 0.99
    assert abs(half.norm() / exact.norm() - 1) < 0.05


def perceptron():
    return build_task({"task": "digits-mlp", "width": 64})


def convolutions():
    """A task on the digits with convolutions, batch normalisation, channel dropout and Cutout."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        rd.ChannelDropout("maps"),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        rd.Dropout("units"),
        nn.Linear(256, 10),
    )
    space = rd.HyperSpace(
        maps=rd.Bounded(0.1, low=0.0, high=0.9),
        units=rd.Bounded(0.1, low=0.0, high=0.9),
        holes=rd.Integer(1, low=0, high=3),
        length=rd.Integer(2, low=0, high=6),
    )
    train, valid, _ = digits()
    cutout = rd.Cutout("holes", "length")
    return rd.Task(space=space, model=model, loss=F.cross_entropy, train=train, valid=valid, augment=cutout)


@pytest.mark.parametrize("build", [perceptron, convolutions])
@pytest.mark.parametrize("method", RESPONDING)
def test_bf16_changes_the_schedule_less_than_another_seed(method, build):
    def schedule(precision, seed=0):
        torch.manual_seed(0)
        tuner = rd.SelfTuner(
            build(),
            method,
            epochs=4,
            batch_size=64,
            lr=0.02,
            warmup=1,
            hyper_lr=0.05,
            seed=seed,
            precision=precision,
            device="cpu",
        )
        lams = []
        for _ in tuner.fit():
            lams.append(tuner.space.lam.detach().clone())
        return torch.stack(lams)

    exact, half, other = schedule("fp32"), schedule("bf16"), schedule("fp32", seed=1)
    assert not torch.equal(exact, half)
    assert (half - exact).abs().mean() < (other - exact).abs().mean()


def test_evaluation_runs_in_the_precision_of_the_run():
    losses = {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        tuner = rd.SelfTuner(build_task({"task": "digits-mlp", "width": 64}), "fixed", epochs=1, precision=precision)
        losses[precision] = tuner.scores.valid_scores(tuner.steps)["loss"]
    assert losses["fp32"] != losses["bf16"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)


def test_parameters_and_states_stay_in_float32():
    tuner = rd.SelfTuner(build_task({"task": "digits-mlp", "width": 16}), epochs=1, precision="bf16", warmup=0)
    tuner.step()
    tensors = [*tuner.model.parameters(), *tuner.response.parameters(), tuner.space.lam]
    assert {t.dtype for t in tensors} == {torch.float32}
    assert {t.dtype for t in tuner.export().values()} == {torch.float32}


@pytest.mark.parametrize("rate", [0.002, 0.05])
def test_dropout_keeps_its_rate(rate):
    space = rd.HyperSpace(rate=rd.Bounded(rate, low=0.0, high=0.9))
    pass_values = PassValues(space, torch.Generator().manual_seed(0))
    pass_values.values = space.named(space.values())
    layer = rd.Dropout("rate")
    layer.bind(pass_values)
    many = 1_000_000
    out = layer.train()(torch.ones(1, many, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    dropped = (out == 0).double().mean().item()
    assert abs(dropped - rate) < 5 * (rate * (1 - rate) / many) ** 0.5


def test_bf16_needs_a_float32_model():
    task = build_task({"task": "digits-mlp", "width": 16})
    task.model.double()
    with pytest.raises(ValueError, match=r"`precision=bf16` needs a float32 model, got torch\.float64"):
        rd.SelfTuner(task, precision="bf16")


def test_tf32_is_on_during_a_run_only():
    seen = []
    task = build_task({"task": "digits-mlp", "width": 16})
    task.loss = lambda out, y: seen.append(torch.get_float32_matmul_precision()) or F.cross_entropy(out, y)
    before = torch.get_float32_matmul_precision()
    rd.SelfTuner(task, epochs=1, precision="tf32", device="cpu").step()
    assert "high" in seen
    assert torch.get_float32_matmul_precision() == before


PROGRAM = """
import torch
from ray_deltastn.training.precision import float32_products

backends = torch.backends
{setting}
switches = [backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.conv, backends.cudnn.rnn]
before = [switch.fp32_precision for switch in switches]
for tf32 in (True, False):
    with float32_products(tf32, torch.device("cuda")):
        assert [switch.fp32_precision == "tf32" for switch in switches] == [tf32] * 4, (tf32, before)
    assert [switch.fp32_precision for switch in switches] == before, (tf32, before)
"""


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="needs a newer PyTorch")
@pytest.mark.parametrize(
    "setting",
    [
        "backends.cuda.matmul.fp32_precision = 'tf32'",
        "backends.fp32_precision = 'tf32'",
        "backends.cudnn.conv.fp32_precision = 'ieee'; backends.mkldnn.matmul.fp32_precision = 'tf32'",
    ],
)
def test_tf32_in_a_program_with_the_newer_switches_of_pytorch(setting):
    # After a program has set a newer switch, PyTorch refuses the older switches in the whole process.
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(setting=setting)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
