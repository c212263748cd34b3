"""What cannot work in a step is refused before the first one, in one line that names the layer and what to do."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jvp
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import ray_deltastn as rd
from ray_deltastn.response import linearised_forward
from tests.training.runs import examples

X, Y = examples(24, 1)
REFUSED = (
    r"activation checkpointing must be off for '{}', got `torch\.utils\.checkpoint` around layer '{}'.* "
    r"`gradient_checkpointing_disable\(\)` .* `set_grad_checkpointing\(False\)`"
)


class Part(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.layer, self.drop = nn.Linear(6, 6), dropout

    def forward(self, x):
        return torch.tanh(self.drop(self.layer(x)))


class Recomputed(nn.Module):
    """Two parts and an output layer; `how` the parts are called, and whether in training mode only."""

    def __init__(self, how, training_only=False, tuned=True):
        super().__init__()
        self.how, self.training_only = how, training_only
        self.parts = nn.Sequential(*(Part(rd.Dropout("rate") if tuned else nn.Dropout(0.1)) for _ in range(2)))
        self.drop, self.out = rd.Dropout("rate"), nn.Linear(6, 3)

    def forward(self, x):
        x = x + 0.0 * self.out.weight.sum()  # the reentrant kind needs an input with a gradient
        reentrant = self.how.startswith("reentrant")
        if self.how == "direct" or (self.training_only and not self.training):
            x = self.parts(x)
        elif self.how.endswith("sequential"):
            x = checkpoint_sequential(self.parts, 2, x, use_reentrant=reentrant)
        else:
            for part in self.parts:
                x = checkpoint(part, x, use_reentrant=reentrant)
        return self.out(self.drop(x))


def tuner_of(model, method="delta-stn", **changes):
    torch.manual_seed(0)
    given = {"model": model, "loss": F.cross_entropy, "train": (X, Y), "valid": (X, Y), **changes}
    task = rd.Task(rd.HyperSpace(rate=rd.Bounded(0.2)), **given)
    return rd.SelfTuner(task, method, epochs=2, batch_size=8, warmup=0, train_interval=1)


HOW = ["reentrant", "other", "reentrant-sequential", "other-sequential"]


@pytest.mark.parametrize("training_only", [False, True], ids=["always", "training"])
@pytest.mark.parametrize("method", ["delta-stn", "centered-stn", "stn"])
@pytest.mark.parametrize("how", HOW)
def test_activation_checkpointing_is_refused_by_name(how, method, training_only):
    model = Recomputed(how, training_only)
    with pytest.raises(TypeError, match=REFUSED.format(method, r"parts\.0")) as caught:
        tuner_of(model, method)
    assert "\n" not in str(caught.value)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("method", ["delta-stn", "centered-stn", "stn"])
def test_the_same_network_without_it_is_exact(method):
    tuner = tuner_of(Recomputed("direct").double(), method, train=(X.double(), Y), valid=(X.double(), Y))
    assert not tuner.coverage.uncovered
    if method == "delta-stn":
        with torch.no_grad():
            tuner.response.U.normal_(0.0, 0.1)
        model, x = tuner.model.eval(), X[:3].double()
        weights = {name: p.detach() for name, p in model.named_parameters()}
        delta = torch.randn(3, 1, dtype=torch.float64)
        with torch.no_grad():
            found = linearised_forward(model, x, tuner.response, delta) - model(x)
        for row, one, mine in zip(delta, x, found, strict=True):
            folded = tuner.response.fold(row)
            along = {name: folded.get(name, w).detach() - w for name, w in weights.items()}
            expected = jvp(lambda w, one=one: functional_call(model, w, (one[None],))[0], (weights,), (along,))[1]
            torch.testing.assert_close(mine, expected)


def test_plain_training_may_compute_a_part_again_if_the_part_reads_no_hyperparameter():
    reports = {}
    for how in ("direct", "other", "other-sequential"):
        torch.manual_seed(0)
        reports[how] = list(tuner_of(Recomputed(how, tuned=False), "fixed").fit())[-1]["valid_loss"]
    assert reports["other"] == reports["other-sequential"] == pytest.approx(reports["direct"], rel=1e-6)
    with pytest.raises(TypeError, match=REFUSED.format("fixed", r"parts\.0")):
        tuner_of(Recomputed("other"), "fixed")
    with pytest.raises(TypeError, match=REFUSED.format("fixed", r"parts\.0")):
        tuner_of(Recomputed("reentrant", tuned=False), "fixed")


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs transformers")
def test_transformers_is_told_what_to_do():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=20, num_labels=3, **sizes)
    words = {"input_ids": torch.randint(1, 20, (24, 5))}
    task = {"train": (words, Y), "valid": (words, Y), "loss": lambda output, y: F.cross_entropy(output.logits, y)}
    model = BertForSequenceClassification(config)
    model.gradient_checkpointing_enable()
    space = {"space": rd.HyperSpace(decay=rd.Positive(1e-3)), "penalty": rd.L2("decay"), "model": model}
    with pytest.raises(TypeError, match=REFUSED.format("delta-stn", r"bert\.encoder\.layer\.0[.a-z]*")):
        rd.SelfTuner(rd.Task(**space, **task), epochs=1, batch_size=8)
    model.gradient_checkpointing_disable()
    rd.SelfTuner(rd.Task(**space, **task), epochs=1, batch_size=8).step()


@pytest.mark.skipif(not importlib.util.find_spec("timm"), reason="needs timm")
def test_timm_is_told_what_to_do():
    import timm

    model = timm.models.VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2, num_classes=3)
    model.set_grad_checkpointing(True)
    images = torch.randn(24, 3, 16, 16)
    given = {"space": rd.HyperSpace(decay=rd.Positive(1e-3)), "penalty": rd.L2("decay"), "loss": F.cross_entropy}
    task = rd.Task(model=model, train=(images, Y), valid=(images, Y), **given)
    with pytest.raises(TypeError, match=REFUSED.format("delta-stn", "blocks.0")):
        rd.SelfTuner(task, epochs=1, batch_size=8)
    model.set_grad_checkpointing(False)
    rd.SelfTuner(task, epochs=1, batch_size=8).step()


def test_the_trial_moves_nothing():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            if self.training:
                self.calls += 1
            return x

    network = nn.Sequential(nn.Linear(6, 5), Counting(), nn.BatchNorm1d(5), rd.Dropout("rate"), nn.Linear(5, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    tuner = tuner_of(network)
    assert all(torch.equal(value, before[name]) for name, value in tuner.model.state_dict().items())


# --- operations without a forward-mode rule --------------------------------------------------------------------------


class WithoutRule(torch.autograd.Function):
    """A function with a backward pass only."""

    @staticmethod
    def forward(context, x):
        return 2 * x

    @staticmethod
    def backward(context, gradient):
        return 2 * gradient


@torch.library.custom_op("deltastn_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


twice.register_fake(torch.empty_like)
twice.register_autograd(lambda context, gradient: 2 * gradient)


class Applied(nn.Module):
    """A layer that applies a function, perhaps in training mode only."""

    def __init__(self, function, training_only=False):
        super().__init__()
        self.function, self.training_only = function, training_only

    def forward(self, x):
        return self.function(x) if self.training or not self.training_only else 2 * x


class Beside(nn.Module):
    """The function is called between two layers."""

    def __init__(self, function):
        super().__init__()
        self.first, self.function, self.out = nn.Linear(6, 5), function, nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.function(self.first(x)))


def between(layer):
    return nn.Sequential(nn.Linear(6, 5), layer, rd.Dropout("rate"), nn.Linear(5, 3))


RULES = {
    "function": (lambda: between(Applied(WithoutRule.apply)), "in layer '1' (Applied) or in what follows it"),
    "in-training": (lambda: between(Applied(WithoutRule.apply, True)), "in layer '1' (Applied) or in what follows it"),
    "operator": (lambda: between(Applied(twice)), "in layer '1' (Applied) or in what follows it"),
    "operator-between-layers": (
        lambda: nn.Sequential(Beside(twice), rd.Dropout("rate")),
        "in layer '0.first' (Linear) or in what follows it",
    ),
}


@pytest.mark.parametrize("case", RULES)
def test_an_operation_without_a_rule_names_its_layer_and_the_methods_that_work(case):
    build, where = RULES[case]
    with pytest.raises(
        TypeError, match=r"every operation must have a forward-mode rule.* use 'centered-stn' or 'stn'"
    ) as e:
        tuner_of(build())
    assert where in str(e.value)
    assert "\n" not in str(e.value)
    for method in ("centered-stn", "stn"):
        assert not list(tuner_of(build(), method).fit())[-1]["diverged"]


class Moving(nn.Module):
    """A centring layer of another package, which puts a new tensor in place of its buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


def test_the_trial_passes_leave_buffers_that_a_layer_replaces_as_they_were():
    model = nn.Sequential(nn.Linear(4, 4), Moving(), nn.Linear(4, 3))
    before = model[1].mean
    x, y = torch.randn(12, 4), torch.randint(0, 3, (12,))
    space = rd.HyperSpace(decay=rd.Positive(1e-3))
    rd.SelfTuner(rd.Task(space, model, F.cross_entropy, (x, y), (x, y), penalty=rd.L2("decay")), epochs=1, warmup=0)
    assert model[1].mean is before
    assert not before.any()
