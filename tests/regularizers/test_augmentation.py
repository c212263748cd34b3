"""Augmentations with one strength per image, compared with torchvision's operations on single images."""

import math

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

import ray_deltastn as rd
from ray_deltastn.domains import Bounded, Integer, LowerBounded, Unbounded
from ray_deltastn.regularizers import (
    Augmentation,
    ColorJitter,
    Cutout,
    GaussianNoise,
    PassValues,
    RandomAffine,
    RandomHorizontalFlip,
    ScalingNoise,
)
from ray_deltastn.regularizers import color as ops
from ray_deltastn.regularizers.affine import transform
from ray_deltastn.space import HyperSpace

WHATS = {
    "brightness": lambda s: ColorJitter(brightness=s),
    "contrast": lambda s: ColorJitter(contrast=s),
    "saturation": lambda s: ColorJitter(saturation=s),
    "hue": lambda s: ColorJitter(hue=s),
    "degrees": lambda s: RandomAffine(degrees=s),
    "translate": lambda s: RandomAffine(translate=s),
    "scale": lambda s: RandomAffine(scale=s),
    "shear": lambda s: RandomAffine(shear=s),
    "flip": RandomHorizontalFlip,
    "gaussian": GaussianNoise,
    "scaling": ScalingNoise,
}
COLOUR_ONLY = ("saturation", "hue")
RESAMPLED = ("degrees", "translate", "scale", "shear")
EVERY = pytest.mark.parametrize("what", WHATS)


def photos(batch=6, channels=3, height=16, width=20, seed=0):
    """Smooth colour images in [0, 1] with flat, black and white parts."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, 5, 5, generator=generator)
    x = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    x[:, :, :3, :3] = 0.0
    x[:, :, 3:6, :3] = 1.0
    x[:, :, 6:8, :3] = 0.4
    x[:, 0, 8:10, :3] = 0.4
    return x


def pass_values_of(value, seed=0, space=None):
    """Pass values in which the hyperparameter `s` has this value, or one value per image."""
    pass_values = PassValues(space or HyperSpace(s=Unbounded(0.0)), torch.Generator().manual_seed(seed))
    pass_values.values = {"s": torch.as_tensor(value, dtype=torch.float64)}
    return pass_values


# --- each operation against torchvision ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ops.scale_brightness, tv.adjust_brightness),
        (ops.scale_contrast, tv.adjust_contrast),
        (ops.scale_saturation, tv.adjust_saturation),
    ],
)
@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.4, 2.0])
def test_colour_factors_equal_torchvision(ours, theirs, factor):
    x = photos()
    shared = ours(x, torch.full((len(x), 1, 1, 1), factor))
    torch.testing.assert_close(shared, theirs(x, factor), rtol=0, atol=2e-6)


@pytest.mark.parametrize("turns", [-0.5, -0.21, 0.0, 0.04, 0.3, 0.5])
def test_hue_rotation_equals_torchvision(turns):
    x = photos()
    shared = ops.turn_hue(x, torch.full((len(x), 1, 1, 1), turns))
    torch.testing.assert_close(shared, tv.adjust_hue(x, turns), rtol=0, atol=1e-5)


def test_each_image_has_its_own_factor():
    x = photos(batch=4)
    column = torch.tensor([0.35, 0.9, 1.3, 0.4]).view(-1, 1, 1, 1)
    pairs = [
        (ops.scale_brightness, tv.adjust_brightness, column),
        (ops.scale_contrast, tv.adjust_contrast, column),
        (ops.scale_saturation, tv.adjust_saturation, column),
        (ops.turn_hue, tv.adjust_hue, column - 0.8),
    ]
    for ours, theirs, given in pairs:
        expected = torch.stack([theirs(image, f) for image, f in zip(x, given.flatten().tolist(), strict=True)])
        torch.testing.assert_close(ours(x, given), expected, rtol=0, atol=1e-5)


AFFINE = [
    # angle, across, down, factor, shear
    (0.0, 0.0, 0.0, 1.0, 0.0),
    (30.0, 0.0, 0.0, 1.0, 0.0),
    (-45.0, 0.0, 0.0, 1.0, 0.0),
    (0.0, 3.0, 0.0, 1.0, 0.0),
    (0.0, 0.0, -4.0, 1.0, 0.0),
    (0.0, 0.0, 0.0, 0.6, 0.0),
    (0.0, 0.0, 0.0, 1.5, 0.0),
    (0.0, 0.0, 0.0, 1.0, 25.0),
    (0.0, 0.0, 0.0, 1.0, -40.0),
    (20.0, -2.0, 5.0, 1.3, 15.0),
    (-33.0, 4.0, 1.0, 0.7, -28.0),
]


def theirs_affine(x, angle, across, down, factor, shear, fill=None):
    return tv.affine(
        x, angle, [across, down], factor, [shear, 0.0], interpolation=InterpolationMode.BILINEAR, fill=fill
    )


@pytest.mark.parametrize("size", [(16, 16), (16, 20), (21, 12)])
@pytest.mark.parametrize("parts", AFFINE)
def test_affine_equals_torchvision(parts, size):
    x = photos(height=size[0], width=size[1])
    ours = transform(x, *(torch.full((len(x),), part) for part in parts))
    torch.testing.assert_close(ours, theirs_affine(x, *parts), rtol=0, atol=2e-5)


def test_each_image_has_its_own_affine_map_and_fill_outside():
    x = photos(batch=len(AFFINE))
    ours = transform(x, *torch.tensor(AFFINE).T, fill=0.7)
    expected = torch.stack([theirs_affine(image, *parts, fill=[0.7]) for image, parts in zip(x, AFFINE, strict=True)])
    # At the border torchvision counts the outside twice. So compare only pixels that are fully inside or outside.
    inside = transform(torch.ones_like(x), *torch.tensor(AFFINE).T)
    clear = (inside < 1e-6) | (inside > 1 - 1e-6)
    assert clear.float().mean() > 0.9
    torch.testing.assert_close(ours[clear], expected[clear], rtol=0, atol=2e-5)
    torch.testing.assert_close(ours, transform(x, *torch.tensor(AFFINE).T) + 0.7 * (1 - inside), rtol=0, atol=2e-6)


# --- strengths -------------------------------------------------------------------------------------------------------


@EVERY
def test_strength_zero_does_not_change_the_images(what):
    x = photos()
    out = WHATS[what]("s")(x, pass_values_of(0.0))
    if what in RESAMPLED:
        torch.testing.assert_close(out, x, rtol=0, atol=2e-6)
    else:
        assert torch.equal(out, x)


@EVERY
def test_each_image_has_its_own_strength(what):
    """The effect on an image depends on its strength only: not on other images, and not on a shared strength."""
    x = photos()
    strengths = [0.0, 0.5, 0.1, 0.0, 0.3, 0.4]
    each = WHATS[what]("s")(x, pass_values_of(strengths))
    for index, strength in enumerate(strengths):
        alone = WHATS[what]("s")(x, pass_values_of(strength))[index]  # as in the w₀ pass: one value for all images
        torch.testing.assert_close(each[index], alone, rtol=0, atol=1e-6)
    for index in (0, 3):
        torch.testing.assert_close(each[index], x[index], rtol=0, atol=2e-6)
    if what != "flip":
        for index in (1, 2, 4, 5):
            assert (each[index] - x[index]).abs().max() > 1e-3


@EVERY
def test_a_constant_strength_is_the_same_as_a_hyperparameter_with_that_value(what):
    x = photos()
    constant = WHATS[what](0.3)
    assert constant.names == ()
    assert torch.equal(constant(x, pass_values_of(0.9)), WHATS[what]("s")(x, pass_values_of(0.3)))


@EVERY
def test_all_random_numbers_come_from_the_generator(what):
    x = photos()
    torch.manual_seed(1)
    first = WHATS[what]("s")(x, pass_values_of(0.4, seed=5))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    pass_values = pass_values_of(0.4, seed=5)
    assert torch.equal(WHATS[what]("s")(x, pass_values), first)
    assert torch.equal(torch.get_rng_state(), before)
    again = [WHATS[what]("s")(x, pass_values) for _ in range(4)]
    assert not all(torch.equal(first, out) for out in again)


@EVERY
def test_images_keep_shape_type_and_are_not_changed_in_place(what):
    for dtype in (torch.float32, torch.float64):
        x = photos().to(dtype)
        before = x.clone()
        out = WHATS[what]("s")(x, pass_values_of([0.4] * len(x)))
        assert out.shape == x.shape
        assert out.dtype == dtype
        assert torch.equal(x, before)


@EVERY
def test_uint8_images_are_scaled_to_zero_to_one(what):
    raw = (photos() * 255).round().to(torch.uint8)
    out = WHATS[what]("s")(raw, pass_values_of(0.3))
    assert torch.equal(out, WHATS[what]("s")(raw.float() / 255, pass_values_of(0.3)))
    with pytest.raises(ValueError, match=r"floating point or uint8, got torch.int64"):
        WHATS[what]("s")(raw.long(), pass_values_of(0.3))


@EVERY
def test_only_saturation_and_hue_refuse_grey_images(what):
    x = photos(channels=1)
    if what in COLOUR_ONLY:
        with pytest.raises(ValueError, match=rf"`x.shape\[1\] == 3` must hold for {what}, got .*\(1, 16, 20\)"):
            WHATS[what]("s")(x, pass_values_of(0.4))
    else:
        assert WHATS[what]("s")(x, pass_values_of(0.4)).shape == x.shape


def factors(augmentation, strength, ones, count=20_000):
    """Pixel values of a constant image after an augmentation, one draw per image."""
    return augmentation(ones.expand(count, -1, -1, -1), pass_values_of(strength))[:, 0, 0, 0]


@pytest.mark.parametrize("strength", [0.2, 1.0, 1.5])
def test_brightness_factor_is_uniform_between_its_ends(strength):
    flat = torch.full((1, 1, 2, 2), 0.125)
    found = factors(ColorJitter(brightness="s"), strength, flat) / 0.125
    low, high = max(0.0, 1 - strength), 1 + strength
    assert low - 1e-5 <= found.min() <= found.max() <= high + 1e-5
    assert abs(found.mean().item() - (low + high) / 2) <= 4 * (high - low) / math.sqrt(12 * len(found))
    assert abs(found.std().item() / ((high - low) / math.sqrt(12)) - 1) <= 0.03


def test_hue_rotation_is_uniform_and_symmetric():
    """The rotation is measured on a red pixel."""
    red = torch.zeros(1, 3, 1, 1)
    red[0, 0] = 1.0
    out = ColorJitter(hue="s")(red.expand(20_000, -1, -1, -1), pass_values_of(0.1))[:, :, 0, 0]
    turn = (out[:, 1] - out[:, 2]) / 6  # towards yellow, or towards magenta
    assert turn.abs().max() <= 0.1 + 1e-6
    assert abs(turn.mean().item()) <= 4 * 0.2 / math.sqrt(12 * len(turn))
    assert abs(turn.std().item() / (0.2 / math.sqrt(12)) - 1) <= 0.03


def test_translation_is_a_share_of_width_and_of_height():
    """The image is a ramp along one axis, so a central pixel shows the translation along this axis."""
    across = torch.arange(30.0).view(1, 1, 1, 30).expand(2000, 1, 10, 30)
    down = torch.arange(10.0).view(1, 1, 10, 1).expand(2000, 1, 10, 30)
    for slope, side in ((across, 30), (down, 10)):
        out = RandomAffine(translate="s")(slope, pass_values_of(0.2))[:, 0, 5, 15]
        moved = (slope[0, 0, 5, 15] - out) / side
        assert 0.19 < moved.abs().max() <= 0.2 + 1e-5
        assert abs(moved.mean().item()) <= 4 * 0.4 / math.sqrt(12 * 2000)


def test_flip_mirrors_whole_images_with_its_probability():
    x = photos(batch=1).expand(4000, -1, -1, -1)
    p = torch.tensor([0.0, 0.25, 0.5, 1.0]).repeat_interleave(1000)
    out = RandomHorizontalFlip("s")(x, pass_values_of(p))
    mirrored = (out == x.flip(-1)).all(-1).all(-1).all(-1)
    assert torch.equal(out[~mirrored], x[~mirrored])
    share = mirrored.view(4, 1000).double().mean(1)
    assert share[0] == 0
    assert share[3] == 1
    assert (share - torch.tensor([0.0, 0.25, 0.5, 1.0])).abs().max() <= 4 * 0.5 / math.sqrt(1000)


def test_noise_has_its_standard_deviation_and_zero_mean():
    x = torch.full((3, 40_000), 2.0)
    sigma = torch.tensor([0.0, 0.5, 2.0])
    for noise, expected in ((GaussianNoise, sigma), (ScalingNoise, 2 * sigma)):
        out = noise("s")(x, pass_values_of(sigma))
        assert ((out - x).mean(1).abs() <= 4 * expected / 200 + 1e-7).all()
        torch.testing.assert_close((out - x).std(1), expected, rtol=0.02, atol=1e-7)


# --- fill of Cutout --------------------------------------------------------------------------------------------------

HOLES = HyperSpace(s=Integer(1, low=0, high=4), length=Integer(4, low=0, high=24))


def cut(x, fill):
    pass_values = pass_values_of(2.0, space=HOLES)
    pass_values.values["length"] = torch.tensor(5.0, dtype=torch.float64)
    return Cutout("s", "length", fill=fill)(x, pass_values)


def test_holes_are_filled_with_the_value_of_their_channel():
    x = photos() + 2.0
    hole = cut(x, 0.0) == 0
    mean = (0.4, 0.5, 0.6)
    filled = cut(x, mean)
    expected = torch.tensor(mean).view(1, 3, 1, 1).expand_as(x)
    assert torch.equal(filled, torch.where(hole, expected, x))
    assert torch.equal(cut(x, 0.25), torch.where(hole, 0.25, x))
    assert cut((photos() * 255).to(torch.uint8), 0.25).dtype == torch.float32


@pytest.mark.parametrize("x", [torch.ones(2, 1, 8, 8), torch.ones(2, 8, 8)])
def test_a_fill_for_another_number_of_channels_is_refused(x):
    with pytest.raises(ValueError, match=r"one value for each channel, got 3 for images of shape"):
        cut(x, (0.1, 0.2, 0.3))


# --- domains and constants -------------------------------------------------------------------------------------------

BAD = {
    "brightness": (Bounded(0.1, low=-0.1, high=1.0), -0.1),
    "hue": (Bounded(0.1, low=0.0, high=0.6), 0.6),
    "degrees": (Unbounded(0.1), math.inf),
    "scale": (Bounded(0.1, low=0.0, high=1.0), 1.0),
    "shear": (LowerBounded(0.1), 90.0),
    "flip": (Bounded(0.1, low=0.0, high=1.1), 1.1),
    "gaussian": (Unbounded(0.1), -1.0),
    "scaling": (Unbounded(0.1), math.nan),
}


@pytest.mark.parametrize("what", BAD)
def test_domains_and_constants_out_of_range_are_refused(what):
    domain, constant = BAD[what]
    with pytest.raises(ValueError, match=r"`0 <= \w+.*` must hold for \w+ in the whole domain, got low=.*'s'"):
        WHATS[what]("s").check(HyperSpace(s=domain))
    with pytest.raises(ValueError, match=r"`0 <= \w+.*` must hold for \w+, got \w+="):
        WHATS[what](constant)


@EVERY
def test_valid_domains_pass_and_other_types_of_strength_are_refused(what):
    augmentation = WHATS[what]("s")
    augmentation.check(HyperSpace(s=Bounded(0.05, low=0.0, high=0.5)))
    assert isinstance(augmentation, Augmentation)
    assert augmentation.names == ("s",)
    with pytest.raises(TypeError, match="must be the name of a hyperparameter or a number"):
        WHATS[what]([0.1])


@pytest.mark.parametrize("kind", [ColorJitter, RandomAffine])
def test_an_augmentation_without_strengths_is_refused(kind):
    with pytest.raises(ValueError, match=f"`{kind.__name__}` needs at least one of"):
        kind()


@pytest.mark.parametrize("augmentation", [ColorJitter(brightness=0.1), RandomAffine(degrees=5.0)])
@pytest.mark.parametrize("shape", [(4, 9), (3, 9, 9), (4, 2, 3, 9, 9)])
def test_batches_that_are_not_images_are_refused(augmentation, shape):
    with pytest.raises(ValueError, match=r"needs images \(B, C, H, W\), got a batch of shape"):
        augmentation(torch.ones(shape), pass_values_of(0.1))


def test_augmentations_are_public():
    for name in ("ColorJitter", "RandomAffine", "RandomHorizontalFlip", "GaussianNoise", "ScalingNoise"):
        assert getattr(rd, name).__name__ == name
