"""A tuned model is an ordinary model: its own class, its own state_dict, none of our hooks."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import ray_deltastn as rd
from ray_deltastn.methods import METHODS as ALL_METHODS
from ray_deltastn.training.scores import evaluate

#: Methods for any hyperparameter; `ift` and `unrolled` are for penalties only, and have no response to export.
METHODS = {name: method for name, method in ALL_METHODS.items() if method.responds or not method.tunes}
CENTERED = [name for name, method in METHODS.items() if method.centered]


class Perceptron(nn.Module):
    """Perceptron with batch normalisation; `dropout(name)` makes the dropout layers."""

    def __init__(self, dropout):
        super().__init__()
        self.input_dropout = dropout("rate")
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = dropout("rate")
        self.second = nn.Linear(8, 3)

    def forward(self, x):
        return self.second(self.dropout(torch.relu(self.norm(self.first(self.input_dropout(x))))))


class Convolutional(nn.Module):
    """Convolution, group normalisation and dropout of whole channels."""

    def __init__(self, dropout):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), dropout("rate"))
        self.head = nn.Linear(16, 3, bias=False)

    def forward(self, x):
        return self.head(self.body(x[:, None]).flatten(1))


class TiedTable(nn.Module):
    """Embedding whose table is the output layer's weight too."""

    def __init__(self, dropout):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.dropout = dropout("rate")
        self.middle = nn.Linear(4, 4)
        self.out = nn.Linear(4, 5)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.dropout(torch.tanh(self.middle(self.embed(x).mean(1)))))


class TiedLayers(nn.Module):
    """Two layers with one weight and biases of their own; a frozen parameter and one owned directly."""

    def __init__(self, dropout):
        super().__init__()
        self.gain = nn.Parameter(torch.full((6,), 0.9))
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight
        self.first.bias.requires_grad_(False)
        self.dropout = dropout("rate")

    def forward(self, x):
        return self.head(self.dropout(self.gain * torch.relu(self.second(torch.relu(self.first(x))))))


NETWORKS = {cls.__name__: cls for cls in (Perceptron, Convolutional, TiedTable, TiedLayers)}
TIED = {"TiedTable": ("embed.weight", "out.weight"), "TiedLayers": ("first.weight", "second.weight")}


def plain_dropout(name):
    return nn.Dropout(0.4)


def data(name, count, seed):
    generator = torch.Generator().manual_seed(seed)
    if name == "TiedTable":
        x = torch.randint(0, 5, (count, 3), generator=generator)
        return x, x[:, 0]
    x = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return x, x[:, :3].argmax(1)


def tuned(name, method, epochs=3):
    torch.manual_seed(0)
    model = NETWORKS[name](rd.Dropout).double()
    space = rd.HyperSpace(rate=rd.Bounded(0.2, low=0.0, high=0.9), decay=rd.Positive(1e-3))
    task = rd.Task(
        space=space,
        model=model,
        loss=F.cross_entropy,
        train=data(name, 96, 1),
        valid=data(name, 40, 2),
        penalty=rd.L2("decay"),
    )
    tuner = rd.SelfTuner(
        task, method=method, epochs=epochs, batch_size=16, lr=0.05, hyper_lr=0.02, warmup_steps=0, train_interval=2
    )
    list(tuner.fit())
    assert not tuner.last_report["diverged"]
    return tuner


def evaluation_output(tuner, x):
    """What the tuner itself predicts when it evaluates."""
    seen = []

    def noted(output, target):
        seen.append(output)
        return output.sum()

    tuner.valid.x, tuner.valid.y = x, torch.zeros(len(x), dtype=torch.long)
    evaluate(tuner.objective, tuner.valid, noted, {})
    return torch.cat(seen)


def plain_from(tuner, name):
    plain = NETWORKS[name](plain_dropout).double()
    plain.load_state_dict(tuner.export(), strict=True)
    return plain.eval()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", CENTERED)
def test_export_is_the_tuned_network_in_plain_pytorch(method, name):
    tuner = tuned(name, method)
    x, _ = data(name, 50, 3)
    with torch.no_grad():
        output = plain_from(tuner, name)(x)
        assert torch.equal(output, tuner.model.eval()(x))
    assert torch.equal(output, evaluation_output(tuner, x))


@pytest.mark.parametrize("name", NETWORKS)
def test_export_of_stn_has_the_response_folded_in(name):
    tuner = tuned(name, "stn")
    x, _ = data(name, 50, 3)
    with torch.no_grad():
        output, base = plain_from(tuner, name)(x), tuner.model.eval()(x)
    expected = evaluation_output(tuner, x)
    assert ((output - expected).norm() / expected.norm()).item() <= 1e-12
    assert ((base - expected).norm() / expected.norm()).item() > 1e-3  # what is folded in is not nothing


@pytest.mark.parametrize("name", NETWORKS)
def test_export_of_stn_folds_the_formula(name):
    # w₀ + (Uλ) ⊙_row W_resp, spelt out for weights with output rows and for biases (Eqns. 2.6, 3.14).
    tuner = tuned(name, "stn")
    state, lam = tuner.export(), tuner.space.lam.detach()
    for slot in tuner.response.slots:
        rows = tuner.response.U[slot.start : slot.stop].detach() @ lam
        direction = tuner.response.direction(slot).detach()
        shape = {"output": (-1, *(1,) * (direction.dim() - 1)), "feature": (-1,), "element": direction.shape}
        expected = slot.parameter.detach() + rows.view(shape[slot.rows]) * direction
        assert torch.allclose(state[slot.name], expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_export_holds_the_score_that_was_reported(method, name):
    tuner = tuned(name, method)
    x, y = data(name, 40, 2)
    with torch.no_grad():
        loss = F.cross_entropy(plain_from(tuner, name)(x), y)
    assert tuner.last_report["valid_loss"] == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_tuning_keeps_class_and_keys_of_the_model(method, name):
    tuner = tuned(name, method, epochs=1)
    plain = NETWORKS[name](plain_dropout)
    assert type(tuner.model) is NETWORKS[name]
    assert tuner.model is tuner.task.model
    assert list(tuner.model.state_dict()) == list(plain.state_dict())
    assert list(tuner.export()) == list(plain.state_dict())
    assert [n for n, _ in tuner.model.named_modules()] == [n for n, _ in plain.named_modules()]
    assert all(p.requires_grad for n, p in tuner.model.named_parameters() if n != "first.bias" or name != "TiedLayers")
    assert all(p.grad is None for p in tuner.model.parameters())
    for name_, value in plain.double().state_dict().items():
        assert tuner.export()[name_].dtype == value.dtype
        assert tuner.export()[name_].shape == value.shape


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", TIED)
def test_tied_weights_export_alike(name, method):
    state = tuned(name, method).export()
    first, second = TIED[name]
    assert torch.equal(state[first], state[second])


@pytest.mark.parametrize("method", METHODS)
def test_export_is_a_copy(method):
    tuner = tuned("Perceptron", method)
    before = {name: value.clone() for name, value in tuner.model.state_dict().items()}
    for value in tuner.export().values():
        value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in tuner.model.state_dict().items())
    assert not any(value.requires_grad for value in tuner.export().values())


def hooks_of(model):
    kinds = [kind for kind in vars(nn.Module()) if kind.endswith("_hooks") or kind.endswith("_hooks_with_kwargs")]
    assert "_forward_hooks" in kinds
    assert "_forward_pre_hooks" in kinds
    return [(name, kind) for name, module in model.named_modules() for kind in kinds if getattr(module, kind)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_release_leaves_no_hooks(name, method):
    tuner = tuned(name, method, epochs=1)
    assert bool(hooks_of(tuner.model)) == (method != "fixed")
    assert tuner.release() is tuner.task.model
    assert hooks_of(tuner.model) == []
    assert all(regularizer._pass_values is None for regularizer in tuner.task.regularizers)


def test_release_keeps_hooks_of_the_user():
    torch.manual_seed(0)
    tuner = tuned("Perceptron", "delta-stn", epochs=1)
    calls = []
    tuner.model.first.register_forward_hook(lambda *_: calls.append(1))
    tuner.release().eval()(torch.zeros(2, 6, dtype=torch.float64))
    assert calls == [1]


@pytest.mark.parametrize("method", METHODS)
def test_released_model_predicts_what_it_did(method):
    tuner = tuned("Perceptron", method)
    x, _ = data("Perceptron", 50, 3)
    with torch.no_grad():
        before = tuner.model.eval()(x)
        assert torch.equal(tuner.release().eval()(x), before)


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle, through_torch])
@pytest.mark.parametrize("method", METHODS)
def test_released_model_can_be_copied(method, duplicate):
    tuner = tuned("Perceptron", method, epochs=1)
    x, _ = data("Perceptron", 50, 3)
    model = tuner.release()
    other = duplicate(model)
    with torch.no_grad():
        assert torch.equal(other.eval()(x), model.eval()(x))
        other.first.weight.add_(1)
        assert not torch.equal(other(x), model(x))


def test_copied_regularizer_does_not_drag_the_run_along():
    tuner = tuned("Perceptron", "delta-stn", epochs=1)
    assert copy.deepcopy(tuner.model.dropout)._pass_values is None
    assert tuner.model.dropout._pass_values is tuner.pass_values


def test_released_model_can_be_tuned_again():
    tuner = tuned("Perceptron", "delta-stn", epochs=1)
    model = tuner.release()
    task = rd.Task(
        space=rd.HyperSpace(rate=rd.Bounded(0.3)),
        model=model,
        loss=F.cross_entropy,
        train=data("Perceptron", 96, 1),
        valid=data("Perceptron", 40, 2),
    )
    again = rd.SelfTuner(task, epochs=2, batch_size=16, hyper_lr=1.0, train_interval=2, warmup_steps=0)
    reports = list(again.fit())
    assert reports[-1]["hyperparameters/rate"] != pytest.approx(0.3, abs=1e-3)
    assert len(hooks_of(again.release())) == 0


def test_state_of_the_tuned_model_works_without_the_package_through_functional_call():
    tuner = tuned("Perceptron", "delta-stn")
    x, _ = data("Perceptron", 50, 3)
    plain = NETWORKS["Perceptron"](plain_dropout).double().eval()
    with torch.no_grad():
        assert torch.equal(functional_call(plain, tuner.export(), (x,)), tuner.model.eval()(x))


def test_a_copy_of_a_model_under_tuning_takes_no_hook_of_ours_along():
    tuner = tuned("Perceptron", "delta-stn", epochs=1)
    x, _ = data("Perceptron", 10, 3)
    for copied in (copy.deepcopy(tuner.model), pickle.loads(pickle.dumps(tuner.model))):
        assert torch.equal(copied.eval()(x), tuner.model.eval()(x))
        delta = torch.ones(1, len(tuner.space), dtype=torch.float64)
        with tuner.response.displaced(delta):
            assert not torch.equal(tuner.model(x), copied(x)) or not tuner.response.U.any()
            untouched = copied(x)
        assert torch.equal(untouched, copied(x))
