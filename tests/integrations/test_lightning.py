"""Self-tuning inside Lightning gives the numbers of `SelfTuner`, and its checkpoints continue to the bit."""

import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import ray_deltastn as rd
from tests.pages import run
from tests.training.runs import examples

pl = pytest.importorskip("lightning.pytorch")
from ray_deltastn.integrations.lightning import SelfTuning  # noqa: E402

#: λ moves in proportion to its gradient, so that equal values mean equal gradients.
OPTIONS = {"warmup_steps": 4, "train_interval": 3, "hyper_lr": 0.02, "hyper_clip": 100.0}


class Net(pl.LightningModule):
    def __init__(self, optimizer="sgd"):
        super().__init__()
        torch.manual_seed(11)
        self.net = nn.Sequential(rd.Dropout("rate"), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        self.kind = optimizer

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("valid_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        if self.kind == "adamw":
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.02, weight_decay=0.0)
        else:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class Attending(Net):
    """Attention over the inputs, which gives the rate of its dropout layer to a function of PyTorch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(11)
        self.net = None
        self.embed, self.drop, self.out = nn.Linear(1, 8), rd.Dropout("rate"), nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x[..., None])
        rate = self.drop.p if self.training else 0.0
        return self.out(F.scaled_dot_product_attention(x, x, x, dropout_p=rate).mean(1))


def loader(count, seed, batch=16):
    return DataLoader(TensorDataset(*examples(count, seed)), batch_size=batch)


def space(**more):
    return rd.HyperSpace(rate=rd.Bounded(0.2, low=0.0, high=0.9), **more)


def trainer(*callbacks, **options):
    given = {"max_epochs": 4, "accelerator": "cpu", "logger": False, "enable_checkpointing": False, **options}
    return pl.Trainer(callbacks=list(callbacks), enable_progress_bar=False, enable_model_summary=False, **given)


def fit(net, tuning, ckpt_path=None, callbacks=(), **options):
    """A fitted trainer; five minibatches in an epoch, and validation data that are in order without a copy."""
    run = trainer(tuning, *callbacks, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(net, loader(80, 1), loader(40, 2), ckpt_path=ckpt_path)
    return run


def alone(optimizer="sgd", penalty=(), spaces=None, kind=Net):
    """The same run by `SelfTuner`."""
    net = kind()
    valid = DataLoader(TensorDataset(*examples(40, 2)), batch_size=16, shuffle=True)
    task = rd.Task(spaces or space(), net, F.cross_entropy, loader(80, 1), valid, penalty=penalty)
    how = {"optimizer": "adamw", "lr": 0.02} if optimizer == "adamw" else {"lr": 0.05}
    tuner = rd.SelfTuner(
        task, epochs=4, batch_size=16, schedule={"name": "step", "step_size": 1, "gamma": 0.5}, **how, **OPTIONS
    )
    for _ in tuner.fit():
        pass
    return tuner


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_it_gives_the_numbers_of_a_self_tuner(optimizer):
    net, tuning = Net(optimizer), SelfTuning(space(), F.cross_entropy, **OPTIONS)
    fit(net, tuning)
    expected = alone(optimizer)
    assert tuning.tuner.steps == 20
    assert tuning.tuner.hyperparameters() == expected.hyperparameters() != {"rate": 0.2}
    assert tuning.tuner.schedule().equals(expected.schedule())
    for name, value in expected.export().items():
        assert torch.equal(net.state_dict()[name], value), name
    values = tuning.tuner.history()["hyperparameters/rate"]
    assert values.tolist() == expected.history()["hyperparameters/rate"].tolist()


def test_the_rate_inside_fused_attention_is_tuned_too():
    net, tuning = Attending(), SelfTuning(space(), F.cross_entropy, **OPTIONS)
    fit(net, tuning)
    expected = alone(kind=Attending)
    assert tuning.tuner.hyperparameters() == expected.hyperparameters() != {"rate": 0.2}
    for name, value in expected.export().items():
        assert torch.equal(net.state_dict()[name], value), name
    assert net.training_step.__func__ is Net.training_step
    assert "training_step" not in vars(net)


def test_only_a_module_that_reads_a_rate_has_another_training_step():
    steps = {}

    class Seen(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, *rest):
            steps[type(pl_module)] = pl_module.training_step

    for kind in (Net, Attending):
        fit(kind(), SelfTuning(space(), F.cross_entropy, **OPTIONS), callbacks=[Seen()], max_epochs=1)
    assert [hasattr(steps[kind], "__wrapped__") for kind in (Net, Attending)] == [False, True]


def test_a_training_step_of_the_instance_comes_back_also_after_an_exception():
    net = Attending()

    def broken(batch, batch_idx):
        if batch_idx == 3:
            raise KeyError("broken")
        return Net.training_step(net, batch, batch_idx)

    net.training_step = broken
    with pytest.raises(KeyError):
        fit(net, SelfTuning(space(), F.cross_entropy, **OPTIONS))
    assert net.training_step is broken


def test_penalties_are_part_of_the_gradient():
    penalty = rd.L2("decay")
    net = Net()
    tuning = SelfTuning(space(decay=rd.Positive(0.3)), F.cross_entropy, penalty=penalty, **OPTIONS)
    fit(net, tuning)
    expected = alone(penalty=penalty, spaces=space(decay=rd.Positive(0.3)))
    assert tuning.tuner.hyperparameters() == pytest.approx(expected.hyperparameters(), rel=1e-3)
    for name, value in expected.export().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_checkpoint_continues_to_the_bit(optimizer, tmp_path):
    keep = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    whole, tuning = Net(optimizer), SelfTuning(space(), F.cross_entropy, **OPTIONS)
    fit(whole, tuning, callbacks=[keep], enable_checkpointing=True)
    for epoch in (0, 1):
        torch.manual_seed(epoch)
        net, again = Net(optimizer), SelfTuning(space(), F.cross_entropy, **OPTIONS)
        fit(net, again, ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert again.tuner.steps == 20
        assert again.tuner.schedule().equals(tuning.tuner.schedule())
        assert again.tuner.history().equals(tuning.tuner.history())
        for name, value in whole.state_dict().items():
            assert torch.equal(net.state_dict()[name], value), name
        for name, value in tuning.tuner.response.state_dict().items():
            assert torch.equal(again.tuner.response.state_dict()[name], value), name


def test_values_are_logged_and_the_module_is_plain_afterwards():
    seen = []

    class Seen(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                seen.append(float(trainer.callback_metrics["hyperparameters/rate"]))

    net, tuning = Net(), SelfTuning(space(), F.cross_entropy, **OPTIONS)
    keys = list(net.state_dict())
    run = fit(net, tuning, callbacks=[Seen()])
    assert seen == pytest.approx(tuning.tuner.history()["hyperparameters/rate"].tolist(), rel=1e-6)
    assert run.callback_metrics["scale/rate"] > 0
    assert list(net.state_dict()) == keys
    assert not any(module._forward_hooks for module in net.modules())
    net.train()
    with pytest.raises(RuntimeError, match="has values only inside"):
        net(torch.zeros(2, 6))


def test_gradients_may_be_accumulated():
    net, tuning = Net(), SelfTuning(space(), F.cross_entropy, warmup_steps=1, train_interval=2, hyper_lr=0.05)
    fit(net, tuning, accumulate_grad_batches=2)
    assert tuning.tuner.steps == 4 * 3  # steps of 2, 2 and 1 minibatches
    assert len(tuning.tuner.schedule()) == 4


def test_the_warm_up_counts_steps_also_if_gradients_are_accumulated():
    tuning = SelfTuning(space(), F.cross_entropy, warmup=2, train_interval=1, hyper_lr=0.05)
    fit(Net(), tuning, accumulate_grad_batches=2)
    assert tuning.tuner.warmup_steps == 2 * 3
    assert tuning.tuner.total_steps == 4 * 3
    assert tuning.tuner.history()["hyper_steps"].tolist() == [0, 0, 3, 6]
    assert tuning.tuner.history()["hyperparameters/rate"].nunique() == 3


def test_augmentations_and_submodules():
    class Augmented(Net):
        def training_step(self, batch, index):
            return F.cross_entropy(self.net(tuning.augmented(batch[0])), batch[1])

    noisy = rd.HyperSpace(rate=rd.Bounded(0.2), noise=rd.Bounded(0.1, high=1.0))
    tuning = SelfTuning(noisy, F.cross_entropy, augment=rd.GaussianNoise("noise"), network="net", **OPTIONS)
    with pytest.raises(RuntimeError, match="outside of"):
        tuning.augmented(torch.zeros(2, 6))
    fit(Augmented(), tuning)
    assert tuning.tuner.hyperparameters()["noise"] != 0.1


class Two(Net):
    automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), 0.1), torch.optim.SGD(self.parameters(), 0.1)]


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(6), 0


@pytest.mark.parametrize(
    ("options", "net", "data", "more", "line"),
    [
        ({}, Two, (loader(80, 1), loader(40, 2)), {}, "needs a module with one optimiser, got 2"),
        ({}, Net, (loader(80, 1), None), {}, r"must have a DataLoader for 'valid', got NoneType; give one"),
        ({}, Net, (loader(80, 1), loader(40, 2)), {"max_epochs": -1}, "must know the length of the run, got 5"),
        ({}, Net, (DataLoader(Endless()), loader(40, 2)), {}, "must know the length of the run, got inf"),
        ({}, Net, (loader(80, 1), loader(40, 2)), {"precision": "bf16-true"}, "`precision` must be one of 32-true"),
        ({"method": "stn"}, Net, (loader(80, 1), loader(40, 2)), {}, "`method` must be delta-stn or centered-stn"),
    ],
)
def test_trainers_that_do_not_fit_give_one_line(options, net, data, more, line):
    run = trainer(SelfTuning(space(), F.cross_entropy, **options), **more)
    with pytest.raises(ValueError, match=line):
        run.fit(net(), *data)


@pytest.mark.parametrize(
    ("options", "error", "line"),
    [
        ({"epochs": 3}, ValueError, "`epochs` must not be given, because the other library decides it, got 3"),
        ({"hyper_lrr": 3}, ValueError, "did you mean 'hyper_lr'"),
        ({"space": {"rate": 0.1}}, TypeError, "`space` must be a HyperSpace, got dict"),
    ],
)
def test_bad_options_give_one_line(options, error, line):
    with pytest.raises(error, match=line):
        SelfTuning(**{"space": space(), "loss": F.cross_entropy, **options})


def test_several_devices_without_ddp_are_refused():
    class Pretended:
        world_size, strategy = 2, object()

    with pytest.raises(ValueError, match="one device or the strategy ddp, got 2 devices and object"):
        SelfTuning(space(), F.cross_entropy).on_train_start(Pretended(), Net())


def test_an_exception_takes_the_hooks_off():
    class Broken(Net):
        def training_step(self, batch, index):
            if index == 3:
                raise KeyError("broken")
            return super().training_step(batch, index)

    net = Broken()
    with pytest.raises(KeyError):
        fit(net, SelfTuning(space(), F.cross_entropy, **OPTIONS))
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.slow
def test_the_page_runs_also_under_tune(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = run("docs/lightning.md")
    assert len(namespace["tuning"].tuner.schedule()) == 16
    results = namespace["results"]
    assert results.num_terminated == len(results) == 2
    for result in results:
        assert 0 <= result.metrics["hyperparameters/dropout"] <= 0.95
        assert result.metrics["training_iteration"] == 16
        with result.checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / "checkpoint", weights_only=False)
        assert state["callbacks"]["SelfTuning"]["steps"] == state["global_step"]
