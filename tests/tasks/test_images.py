"""The image tasks of §5.2 and H.2: hyperparameters, networks, splits and options, on random images."""

import re

import pytest
import torch
from torch import nn

import ray_deltastn as rd
from ray_deltastn.tasks import READY, build_task, images
from ray_deltastn.tasks.image_sets import load_images
from ray_deltastn.tasks.images import ImageRecipe, hold_out, image_task
from ray_deltastn.tasks.networks import Normalize, alexnet, mlp, resnet18, simple_cnn, vgg16
from tests.oracles import NoSync
from tests.tasks.image_examples import COUNTS, RECIPES, made_up, task

DROPOUTS = {
    "mnist-mlp": 3,
    "fashion-cnn": 4,
    "cifar10-alexnet": 8,
    "cifar10-vgg16": 16,
    "cifar10-resnet18": 9,
}
CUTOUT = ("cutout_holes", "cutout_length")
DISTORTIONS = ("hue", "saturation", "brightness", "contrast", "translation", "scaling", "rotation", "shear")
EVERY = pytest.mark.parametrize("name", RECIPES)
CIFAR = pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("cifar10")])


# --- hyperparameters -------------------------------------------------------------------------------------------------


@EVERY
def test_hyperparameters_are_those_of_the_paper(name):
    expected = tuple(f"dropout{n}" for n in range(DROPOUTS[name]))
    if name.startswith("cifar10"):
        expected += DISTORTIONS
    if name != "mnist-mlp":
        expected += CUTOUT
    space = task(name).space
    assert space.names == expected
    assert len(space) == COUNTS[name]


@EVERY
def test_initial_values_ranges_and_scales_are_those_of_the_paper(name):
    for key, p in task(name).space.hyperparameters.items():
        known = {
            "cutout_holes": (1, 0, 4, True),
            "cutout_length": (4, 0, 24, True),
            "hue": (0.05, 0, 0.5, False),
            "saturation": (0.05, 0, 1, False),
            "brightness": (0.05, 0, 1, False),
            "contrast": (0.05, 0, 1, False),
            "translation": (0.05, 0, 0.5, False),
            "scaling": (0.05, 0, 0.5, False),
            "rotation": (0.05, 0, 45, False),
            "shear": (0.05, 0, 45, False),
        }
        initial, low, high, whole = known.get(key, (0.05, 0, 0.95, False))
        assert (p.initial, *p.bounds, p.integer) == (initial, low, high, whole)
        assert p.scale_in("open") == 1.0
        assert p.per == "example"
        # The baselines search dropout rates in [0, 0.85], and other hyperparameters in their whole range.
        assert p.search_range(key) == ((0.0, 0.85) if key.startswith("dropout") else (low, high))


@EVERY
def test_a_cycle_moves_every_hyperparameter_and_every_parameter_responds(name):
    torch.manual_seed(0)
    options = {"batch_size": 4, "steps_per_report": 4, "warmup": 0, "train_interval": 2, "lr": 0.05, "device": "cpu"}
    tuner = rd.SelfTuner(task(name), epochs=4, seed=1, **options)
    assert tuner.coverage.uncovered == {}
    before = tuner.space.lam.detach().clone()
    report = tuner.step()
    assert not report["diverged"]
    assert tuner.space.lam.isfinite().all()
    assert (tuner.space.lam != before).all()
    eps = tuner.space.sample(4, tuner.generator).detach()
    loss = tuner.objective.train_loss(*made_up(name), eps)
    for gradient in torch.autograd.grad(loss, list(tuner.response.parameters())):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


@EVERY
def test_black_box_domains_hold_the_initial_values(name):
    pytest.importorskip("ray")
    space = task(name).space
    domains = space.to_tune()
    assert tuple(domains) == space.names
    for key, domain in domains.items():
        assert domain.lower <= space.hyperparameters[key].initial <= domain.upper


# --- networks --------------------------------------------------------------------------------------------------------


def linears(model):
    return [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]


def convolutions(model):
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    return [(m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0]) for m in layers]


def test_perceptron_has_three_hidden_layers_and_ten_outputs():
    assert linears(mlp()) == [(784, 1200), (1200, 1200), (1200, 1200), (1200, 10)]


def test_simple_cnn_has_16_and_32_filters():
    assert convolutions(simple_cnn()) == [(1, 16, 5, 1), (16, 32, 5, 1)]
    assert linears(simple_cnn()) == [(1568, 1568), (1568, 10)]


def test_alexnet_has_five_convolutions_and_two_hidden_layers():
    network = alexnet()
    assert convolutions(network) == [
        (3, 64, 3, 2),
        (64, 192, 3, 1),
        (192, 384, 3, 1),
        (384, 256, 3, 1),
        (256, 256, 3, 1),
    ]
    assert linears(network) == [(1024, 4096), (4096, 4096), (4096, 10)]


def test_vgg16_has_thirteen_convolutions_two_hidden_layers_and_keeps_its_signal():
    torch.manual_seed(0)
    network = vgg16()
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert convolutions(network) == [(a, b, 3, 1) for a, b in zip([3, *widths], widths, strict=False)]
    assert linears(network) == [(512, 512), (512, 512), (512, 10)]
    with torch.no_grad():
        out = network.eval()(torch.randn(4, 3, 32, 32))
        features = network[: [type(m) for m in network].index(nn.Flatten)](torch.randn(4, 3, 32, 32))
    assert out.shape == (4, 10)
    assert 1e-3 < features.std(0).mean() < 10  # it is 4e-7 with PyTorch's initial weights


def test_resnet18_has_twenty_convolutions_and_no_early_downsampling():
    network = resnet18()
    assert len(convolutions(network)) == 20
    assert convolutions(network)[0] == (3, 64, 3, 1)
    assert linears(network) == [(512, 10)]
    with torch.no_grad():
        features = nn.Sequential(*list(network[1].children())[:4]).eval()(torch.zeros(2, 3, 32, 32))
    assert features.shape == (2, 64, 32, 32)


@EVERY
def test_every_layer_of_the_network_is_called(name):
    model = task(name).model
    called = set()
    for module_name, module in model.named_modules():
        module.register_forward_hook(lambda m, args, out, n=module_name: called.add(n))
    with torch.no_grad():
        assert model.eval()(made_up(name)[0]).shape == (4, 10)
    assert called == {n for n, m in model.named_modules()}


@EVERY
def test_bytes_and_floats_are_the_same_images(name):
    model, (x, _) = task(name).model.eval(), made_up(name)
    with torch.no_grad():
        assert torch.equal(model(x), model(x.float() / 255))


def test_normalize_standardises_per_channel_and_is_undone():
    layer = Normalize((0.5, 0.25), (0.5, 2.0))
    x = torch.rand(3, 2, 4, 4)
    out = layer(x)
    torch.testing.assert_close(out[:, 0], (x[:, 0] - 0.5) / 0.5)
    torch.testing.assert_close(out[:, 1], (x[:, 1] - 0.25) / 2.0)
    torch.testing.assert_close(layer.undo(out), x)
    for mean, std in (((0.5,), (0.5, 0.5)), ((0.5,), (0.0,))):
        with pytest.raises(ValueError, match=r"`len\(mean\) == len\(std\)` and `std > 0` must hold"):
            Normalize(mean, std)


# --- augmentation ----------------------------------------------------------------------------------------------------


@CIFAR
def test_augmentations_are_affine_then_colour_then_cutout_filled_with_the_mean(name):
    kinds = [type(a) for a in task(name).augmentations]
    assert kinds == [rd.RandomAffine, rd.ColorJitter, rd.Cutout]
    assert task(name).augmentations[-1].fill == RECIPES[name].mean


@CIFAR
def test_flip_and_scaling_noise_are_options(name):
    assert isinstance(task(name, flip=0.5).augmentations[0], rd.RandomHorizontalFlip)
    noisy = task(name, scaling_noise=True)
    assert len(noisy.space) == COUNTS[name] + 1
    assert any(isinstance(a, rd.ScalingNoise) for a in noisy.augmentations)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "mnist-mlp"])
def test_channel_dropout_drops_feature_maps_not_units_or_pixels(name):
    plain, channels = task(name), task(name, channel_dropout=True)
    assert not any(isinstance(m, rd.ChannelDropout) for m in plain.model.modules())
    shapes = {}
    for m in channels.model.modules():
        if isinstance(m, rd.Dropout):
            m.register_forward_pre_hook(lambda m, args: shapes.update({m: args[0].dim()}))
    channels.model.eval()(made_up(name)[0])
    for layer, axes in shapes.items():
        assert isinstance(layer, rd.ChannelDropout) == (axes == 4 and layer.names != ("dropout0",))


@EVERY
def test_initial_values_and_scale_are_options(name):
    space = task(name, initial_values={"dropout1": 0.3}, perturbation_scale=0.5).space
    assert space.hyperparameters["dropout1"].initial == 0.3
    assert space.hyperparameters["dropout0"].initial == 0.05
    torch.testing.assert_close(space.scale, torch.full((len(space),), 0.5))
    with pytest.raises(ValueError, match=r"`initial_values` must name hyperparameters of the task, got 'droput1'"):
        task(name, initial_values={"droput1": 0.3})
    with pytest.raises(ValueError, match=r"`low <= initial <= high`.* must hold.*'dropout1'"):
        task(name, initial_values={"dropout1": 0.96})


@CIFAR
@pytest.mark.parametrize("per_example", [True, False])
def test_augmentation_never_waits_for_the_device(name, per_example):
    made = task(name, flip=0.5, scaling_noise=True)
    pass_values = rd.regularizers.PassValues(made.space, torch.Generator().manual_seed(0))
    lam = made.space.lam.detach().expand(4, -1) if per_example else made.space.lam.detach()
    pass_values.values = made.space.named(made.space.values(lam))
    x, _ = made_up(name)
    with NoSync():
        for augmentation in made.augmentations:
            x = augmentation(x, pass_values)
    assert x.shape == (4, 3, 32, 32)
    with pytest.raises(AssertionError), NoSync():  # `NoSync` finds a read of a number
        x.mean().item()


# --- splits ----------------------------------------------------------------------------------------------------------


def numbered(count):
    return torch.arange(count).view(-1, 1, 1, 1), torch.arange(count) * 10


@pytest.mark.parametrize(
    ("count", "share", "used", "sizes"),
    [
        (60_000, 0.15, None, (51_000, 9_000)),
        (50_000, 0.20, None, (40_000, 10_000)),
        (60_000, 0.15, 10_000, (8_500, 1_500)),
        (60_000, 0.15, 60_000, (51_000, 9_000)),
        (50, 0.20, 5, (4, 1)),
    ],
)
def test_the_last_share_of_a_permutation_is_held_out(count, share, used, sizes):
    x, y = numbered(count)
    parts = hold_out((x, y), share, 3, used)
    assert tuple(len(part[0]) for part in parts) == sizes
    kept = torch.cat([part[0] for part in parts]).flatten()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3))
    assert torch.equal(kept, order[: sum(sizes)])
    for x, y in parts:
        assert torch.equal(x.flatten() * 10, y)


def test_the_split_depends_on_its_seed_only():
    state = torch.get_rng_state()
    first, same, other = (hold_out(numbered(100), 0.15, seed)[1][0] for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("used", [0, 1, 3, 101, -5])
def test_a_part_without_images_is_refused(used):
    with pytest.raises(ValueError, match=rf"`images` must be at most 100 .*, got images={used} with a share of 0.15"):
        hold_out(numbered(100), 0.15, 0, used)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"images": "abc"}, "`images` must be a whole number >= 1, got 'abc'"),
        ({"images": 10.9}, "`images` must be a whole number >= 1, got 10.9"),
        ({"images": 0}, "`images` must be a whole number >= 1, got 0"),
        ({"split_seed": None}, "`split_seed` must be a whole number >= 0, got None"),
        ({"split_seed": 1.7}, "`split_seed` must be a whole number >= 0, got 1.7"),
        ({"split_seed": True}, "`split_seed` must be a whole number >= 0, got True"),
        ({"split_seed": float("nan")}, "`split_seed` must be a whole number >= 0, got nan"),
        ({"channel_dropout": "false"}, "`channel_dropout` must be true or false, got 'false'"),
        ({"scaling_noise": 1}, "`scaling_noise` must be true or false, got 1"),
        ({"flip": "half"}, "`flip` must be a finite number, got 'half'"),
        ({"perturbation_scale": -1}, "`perturbation_scale > 0` must hold, got -1"),
        ({"initial_values": []}, "`initial_values` must be a mapping of hyperparameters to values, got []"),
        ({"perturbation_scale": float("inf")}, "`perturbation_scale` must be a finite number, got inf"),
        ({"initial_values": 0.3}, "`initial_values` must be a mapping of hyperparameters to values, got 0.3"),
        ({"initial_values": ["dropout0"]}, "`initial_values` must be a mapping"),
    ],
)
def test_invalid_options_are_refused(option, message, monkeypatch):
    monkeypatch.setattr(
        images, "load_images", lambda *_: (made_up("cifar10-alexnet", 20), made_up("cifar10-alexnet", 5))
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        build_task({"task": "cifar10-alexnet", **option})


@EVERY
def test_tasks_are_built_from_their_set(name, monkeypatch):
    asked = []

    def load(images_name, root):
        asked.append((images_name, root))
        return made_up(name, 20), made_up(name, 5, seed=1)

    monkeypatch.setattr(images, "load_images", load)
    built = build_task({"task": name, "data_root": "/somewhere", "images": 10, "split_seed": 4})
    share = {"mnist-mlp": 0.15, "fashion-cnn": 0.15}.get(name, 0.2)
    expected = hold_out(made_up(name, 20), share, 4, 10)
    for got, part in zip((built.train, built.valid, built.test), (*expected, made_up(name, 5, seed=1)), strict=True):
        assert torch.equal(got[0], part[0])
        assert torch.equal(got[1], part[1])
        assert got[0].dtype == torch.uint8
    assert asked == [(RECIPES[name].images, "/somewhere")]
    assert len(build_task({"task": name}).train[0]) == 20 - round(20 * share)
    assert set(READY) == {"digits-mlp", "mnist1d-mlp", "ptb-lstm", "char-transformer", *RECIPES}


# --- the real sets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe", [images.MNIST_MLP, images.FASHION_CNN, images.CIFAR10_ALEXNET], ids=lambda r: r.images
)
def test_constants_are_those_of_the_real_images(recipe: ImageRecipe, real_images):
    (x, _), _ = load_images(recipe.images, real_images)
    values = x.float() / 255
    torch.testing.assert_close(values.mean((0, 2, 3)), torch.tensor(recipe.mean), rtol=0, atol=1e-4)
    torch.testing.assert_close(values.std((0, 2, 3)), torch.tensor(recipe.std), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_fashion_cnn_learns_from_real_images(real_images):
    built = image_task(images.FASHION_CNN, {"data_root": real_images, "images": 1500})
    built.test = None
    tuner = rd.SelfTuner(built, epochs=4, batch_size=64, lr=0.05, warmup=1, hyper_lr=0.05, device="cpu")
    reports = list(tuner.fit())
    assert reports[-1]["valid_accuracy"] > 0.6
    assert reports[-1]["valid_loss"] < 0.7 * reports[0]["valid_loss"]
