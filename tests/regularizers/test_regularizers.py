"""Dropout, Cutout and weight decay with one strength per example."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from ray_deltastn.domains import Integer, LowerBounded, Positive, Unbounded
from ray_deltastn.regularizers import (
    L2,
    Augmentation,
    ChannelDropout,
    Cutout,
    Dropout,
    PassValues,
    Penalty,
    Regularizer,
)
from ray_deltastn.response import Response, Weights
from ray_deltastn.space import HyperSpace
from tests.networks import BY_NAME, NETWORKS
from tests.oracles import assert_all_close, assert_close, dense_squared_norm, grad, randomise


def pass_values_of(seed=0, **values):
    """Pass values with these values. Their space is used only for the upper bound on the number of holes."""
    space = HyperSpace(
        rate=Unbounded(0.0), holes=Integer(1, low=0, high=5), length=Integer(4, low=0, high=40), decay=Positive(0.1)
    )
    pass_values = PassValues(space, torch.Generator().manual_seed(seed))
    pass_values.values = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in values.items()}
    return pass_values


def bound(layer, pass_values):
    layer.bind(pass_values)
    return layer.train()


# --- dropout -------------------------------------------------------------------------------------------------------

RATES = [0.0, 0.05, 0.3, 0.5, 0.95]
MANY = 40_000


def test_dropout_drops_each_example_at_its_own_rate_and_keeps_the_mean():
    out = bound(Dropout("rate"), pass_values_of(rate=RATES))(torch.ones(len(RATES), MANY))
    for p, row in zip(RATES, out, strict=True):
        dropped = row == 0
        error = 4 * (p * (1 - p) / MANY) ** 0.5
        assert abs(dropped.double().mean().item() - p) <= error
        assert row[~dropped].tolist() == pytest.approx([1 / (1 - p)] * int((~dropped).sum()), rel=1e-6)
        assert abs(row.mean().item() - 1) <= error / (1 - p) + 1e-6


def test_dropout_with_a_shared_rate_draws_one_mask_per_example():
    out = bound(Dropout("rate"), pass_values_of(rate=0.3))(torch.ones(4, MANY))
    assert ((out == 0).double().mean(1) - 0.3).abs().max() <= 4 * (0.21 / MANY) ** 0.5
    assert len({tuple(row) for row in (out == 0).tolist()}) == 4  # still one mask per example


@pytest.mark.parametrize("kind", [Dropout, ChannelDropout])
def test_rate_zero_does_not_change_the_input(kind):
    x = torch.randn(3, 4, 5, 5)
    out = bound(kind("rate"), pass_values_of(rate=[0.0, 0.5, 0.0]))(x)
    assert torch.equal(out[[0, 2]], x[[0, 2]])
    assert not torch.equal(out[1], x[1])


@pytest.mark.parametrize("kind", [Dropout, ChannelDropout])
def test_dropout_is_the_identity_in_evaluation_mode(kind):
    layer, x = kind("rate").eval(), torch.randn(3, 4)
    assert layer(x) is x  # it needs no pass values


@pytest.mark.parametrize("kind", [Dropout, ChannelDropout])
@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 3), (6, 7, 3, 4), (6, 7, 2, 3, 4)])
def test_dropout_keeps_shape_and_dtype(kind, shape):
    x = torch.randn(shape, dtype=torch.bfloat16)
    out = bound(kind("rate"), pass_values_of(rate=torch.rand(6)))(x)
    assert out.shape == x.shape
    assert out.dtype == x.dtype


def test_channel_dropout_drops_whole_channels_at_each_examples_rate():
    x = torch.ones(3, 5000, 2, 3)
    out = bound(ChannelDropout("rate"), pass_values_of(rate=[0.0, 0.2, 0.6]))(x)
    assert torch.equal(out, out[..., :1, :1].expand_as(out))
    dropped = (out[..., 0, 0] == 0).double().mean(1)
    assert (dropped - torch.tensor([0.0, 0.2, 0.6])).abs().max() <= 4 * (0.25 / 5000) ** 0.5
    assert (out[2].max() - 1 / 0.4).abs() < 1e-6


@pytest.mark.parametrize("kind", [Dropout, ChannelDropout])
def test_dropout_repeats_with_the_generator_and_differs_between_calls(kind):
    x = torch.ones(4, 50, 2)
    layers = [bound(kind("rate"), pass_values_of(seed=s, rate=0.5)) for s in (1, 1, 2)]
    first, same, other = (layer(x) for layer in layers)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(layers[0](x), first)


def test_without_a_generator_pytorchs_default_generator_is_used():
    layer = bound(Dropout("rate"), PassValues(HyperSpace(rate=Unbounded(0.0))))
    layer.pass_values.values = {"rate": torch.tensor(0.5)}
    torch.manual_seed(3)
    first = layer(torch.ones(4, 50))
    torch.manual_seed(3)
    assert torch.equal(layer(torch.ones(4, 50)), first)


def test_dropout_passes_gradients_and_tangents_through_its_mask():
    layer = bound(Dropout("rate"), pass_values_of(rate=[0.2, 0.6]))
    x, v = torch.randn(2, 6, dtype=torch.float64, requires_grad=True), torch.randn(2, 6, dtype=torch.float64)

    def again(x):
        layer.pass_values.generator.manual_seed(0)
        return layer(x)

    out, tangent = torch.func.jvp(again, (x,), (v,))
    mask = out / x
    assert_close(tangent, mask * v, rtol=1e-12)
    assert_close(grad((again(x) * v).sum(), [x])[0], mask.detach() * v, rtol=1e-12)


# --- Cutout --------------------------------------------------------------------------------------------------------


def cut(size=64, batch=4, channels=2, seed=0, **values):
    """Mask of the holes, (B, C, H, W)."""
    out = Cutout("holes", "length")(torch.ones(batch, channels, size, size), pass_values_of(seed, **values))
    assert torch.equal(out, out.round())
    return out == 0


def runs(line):
    """Lengths of the runs of True in a line."""
    text = "".join("#" if x else "." for x in line.tolist())
    return [len(run) for run in text.split(".") if run]


@pytest.mark.parametrize("length", [1, 2, 3, 8, 13])
def test_one_hole_is_a_square_of_its_length_or_is_clipped_at_the_border(length):
    masks = cut(batch=200, holes=1.0, length=float(length))
    whole = 0
    for mask in masks[:, 0]:
        rows, columns = runs(mask.any(1)), runs(mask.any(0))
        assert len(rows) == len(columns) == 1  # one rectangle
        assert mask.sum() == rows[0] * columns[0]
        assert max(rows[0], columns[0]) <= length
        touches = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
        assert touches or rows[0] == columns[0] == length
        whole += mask.sum().item() == length**2
    # A square is whole unless its centre is within half a length of the border.
    share = (1 - (length - 1) / 64) ** 2
    assert abs(whole / 200 - share) <= 4 * (share * (1 - share) / 200) ** 0.5 + 1e-9


def test_each_example_has_its_own_holes_and_length():
    holes, length = torch.tensor([0.0, 1.0, 2.0, 3.0, 5.0]), torch.tensor([7.0, 0.0, 3.0, 2.0, 1.0])
    biggest = torch.zeros(5)
    for seed in range(30):
        area = cut(batch=5, channels=1, seed=seed, size=128, holes=holes, length=length).sum((1, 2, 3))
        assert (area <= holes * length**2).all()
        biggest = biggest.maximum(area.float())
    assert torch.equal(biggest, holes * length**2)  # some draws have neither overlap nor clipping


@pytest.mark.parametrize(("holes", "length"), [(0.0, 8.0), (3.0, 0.0), (0.0, 0.0)])
def test_no_holes_or_no_length_does_not_change_the_images(holes, length):
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(Cutout("holes", "length")(x, pass_values_of(holes=holes, length=length)), x)


def test_a_hole_twice_the_size_of_the_image_covers_it():
    assert cut(size=8, holes=1.0, length=16.0).all()


def test_channels_share_holes_and_examples_do_not():
    masks = cut(batch=12, channels=3, holes=2.0, length=6.0)
    assert torch.equal(masks, masks[:, :1].expand_as(masks))
    assert len({tuple(m.flatten().tolist()) for m in masks[:, 0]}) == 12


def test_centres_are_uniform_over_the_image():
    masks = cut(size=8, batch=16_000, channels=1, holes=1.0, length=1.0)[:, 0]
    assert (masks.sum((1, 2)) == 1).all()
    share = masks.double().mean(0)
    assert (share - 1 / 64).abs().max() <= 4.5 * (1 / 64 / 16_000) ** 0.5


def test_holes_are_at_other_places_in_the_next_call_and_repeat_with_the_generator():
    assert torch.equal(cut(seed=1, holes=3.0, length=5.0), cut(seed=1, holes=3.0, length=5.0))
    assert not torch.equal(cut(seed=1, holes=3.0, length=5.0), cut(seed=2, holes=3.0, length=5.0))
    pass_values, x = pass_values_of(holes=3.0, length=5.0), torch.ones(2, 1, 32, 32)
    assert not torch.equal(Cutout("holes", "length")(x, pass_values), Cutout("holes", "length")(x, pass_values))


@pytest.mark.parametrize("shape", [(4, 9, 11), (4, 3, 9, 11), (4, 2, 3, 9, 11)])
def test_cutout_takes_images_with_any_leading_axes_and_changes_only_holes(shape):
    x = torch.rand(shape) + 1.0
    before = x.clone()
    out = Cutout("holes", "length")(x, pass_values_of(holes=torch.tensor([1.0, 2.0, 0.0, 5.0]), length=4.0))
    assert torch.equal(x, before)
    assert out.shape == x.shape
    assert torch.equal(out[out != 0], x[out != 0])
    assert torch.equal(out[2], x[2])
    assert (out[[0, 1, 3]] == 0).flatten(1).any(1).all()


def test_cutout_refuses_other_shapes_and_an_unbounded_number_of_holes():
    with pytest.raises(ValueError, match="images"):
        Cutout("holes", "length")(torch.ones(3, 4), pass_values_of(holes=1.0, length=2.0))
    space = HyperSpace(holes=LowerBounded(1.0), length=Integer(1, low=0, high=4))
    with pytest.raises(ValueError, match=r"upper bound.*'holes'"):
        Cutout("holes", "length")(torch.ones(3, 1, 4, 4), PassValues(space))


# --- L2 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
@pytest.mark.parametrize("biases", [True, False], ids=["all-weights", "no-biases"])
@pytest.mark.parametrize("formed", [0, 10**6], ids=["closed-form", "formed"])
def test_l2_equals_the_norm_of_each_examples_dense_weights(network, biases, formed, monkeypatch):
    monkeypatch.setattr("ray_deltastn.response.weights.FORMED", formed)
    model, _ = network()
    response = randomise(Response(model, 2))
    delta = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    strength = torch.rand(4, dtype=torch.float64)
    value = L2("decay", biases=biases, divide_by=7.0)({"decay": strength}, Weights(model, response, delta))
    oracle = 0.5 * strength * dense_squared_norm(model, response, delta, biases) / 7.0
    assert_close(value, oracle)
    inputs = [*response.parameters(), delta, *model.parameters()]
    inputs = [t for t in inputs if t.requires_grad]
    assert_all_close(grad(value.sum(), inputs), grad(oracle.sum(), inputs))


@pytest.mark.parametrize("biases", [True, False], ids=["all-weights", "no-biases"])
def test_l2_without_displacement_is_half_the_squared_norm(biases):
    model, _ = BY_NAME["batchnorm2d"]()
    response = randomise(Response(model, 2))
    expected = 0.5 * 0.1 * sum(p.square().sum() for p in model.parameters() if biases or p.dim() > 1)
    for weights in (Weights(model), Weights(model, response), Weights(model, None, torch.ones(3, 2))):
        value = L2("decay", biases=biases)({"decay": torch.tensor(0.1, dtype=torch.float64)}, weights)
        assert value.shape == ()
        assert_close(value, expected, rtol=1e-12)


@pytest.mark.parametrize("formed", [0, 10**6], ids=["closed-form", "formed"])
def test_l2_counts_parameters_that_do_not_respond(formed, monkeypatch):
    monkeypatch.setattr("ray_deltastn.response.weights.FORMED", formed)
    model = nn.Sequential(nn.Linear(2, 2), nn.MultiheadAttention(2, 1)).double()
    response = Response(model, 1)  # U is zero: no response yet
    value = Weights(model, response, torch.ones(3, 1, dtype=torch.float64)).squared_norm()
    expected = sum(p.square().sum() for p in model.parameters())
    assert_close(value, expected.expand(3), rtol=1e-12)


@pytest.mark.parametrize("formed", [0, 10**6], ids=["closed-form", "formed"])
@pytest.mark.parametrize("biases", [True, False], ids=["all-weights", "no-biases"])
def test_l2_of_single_layers_adds_up_to_that_of_all(biases, formed, monkeypatch):
    monkeypatch.setattr("ray_deltastn.response.weights.FORMED", formed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))).double()
    response = randomise(Response(model, 2))
    weights = Weights(model, response, torch.randn(4, 2, dtype=torch.float64))
    values = {"decay": torch.rand(4, dtype=torch.float64)}
    first, second, third = (L2("decay", biases, layers=[name])(values, weights) for name in ("0", "2.0", "2.1"))
    assert_close(first + second + third, L2("decay", biases)(values, weights))
    assert_close(second + third, L2("decay", biases, layers=["2"])(values, weights))
    assert_close(first, L2("decay", biases, layers=["0", "0"])(values, weights))


def test_l2_refuses_layers_that_are_not_there():
    weights = Weights(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with pytest.raises(ValueError, match=r"`layers` must name modules.*'1'"):
        L2("decay", layers=["0", "1"])({"decay": torch.ones(())}, weights)
    with pytest.raises(TypeError, match=r"such as \['fc'\]"):
        L2("decay", layers="fc")


def test_l2_refuses_to_divide_by_zero():
    with pytest.raises(ValueError, match=r"divide_by > 0.*'decay'"):
        L2("decay", divide_by=0.0)


def test_l2_refuses_a_model_without_matrices():
    with pytest.raises(ValueError, match="two or more axes"):
        Weights(nn.LayerNorm(3)).squared_norm(biases=False)


# --- pass values ---------------------------------------------------------------------------------------------------


def test_outside_a_run_the_error_names_the_layer_and_model_eval():
    with pytest.raises(RuntimeError, match=r"`Dropout\(rate\)`.*model.eval\(\)"):
        Dropout("rate")(torch.ones(2, 3))


def test_outside_a_pass_the_error_names_the_hyperparameter():
    with pytest.raises(RuntimeError, match="`rate`"):
        bound(Dropout("rate"), pass_values_of())(torch.ones(2, 3))


def test_values_of_another_batch_are_refused():
    with pytest.raises(ValueError, match=r"'rate' per example, got 2 for a batch of 5"):
        bound(Dropout("rate"), pass_values_of(rate=[0.1] * 5))(torch.ones(2, 3))


def test_values_are_shaped_and_typed_to_act_on_the_batch():
    pass_values = pass_values_of(rate=[0.1, 0.2])
    for given, expected in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        like = torch.ones(2, 3, 4, 5, dtype=given)
        value = pass_values.value("rate", like=like)
        assert value.shape == (2, 1, 1, 1)
        # 8 bits of precision are not enough for a rate of 0.001.
        assert value.dtype == expected
        assert pass_values.rand(2, like=like).dtype == expected
    assert pass_values_of(rate=0.3).value("rate", like=like).shape == (1, 1, 1, 1)


def test_names_must_be_strings():
    with pytest.raises(TypeError, match=r"0\.5"):
        Dropout(0.5)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickled, saved])
def test_a_copied_model_does_not_contain_the_run(copied):
    layer = bound(Dropout("rate"), pass_values_of(rate=0.5))
    twin = copied(layer)
    with pytest.raises(RuntimeError, match="SelfTuner"):
        twin(torch.ones(2, 3))
    layer(torch.ones(2, 3))  # the original layer still works
    whole = copy.deepcopy(nn.Sequential(nn.Linear(3, 3), layer))
    assert whole[1]._pass_values is None
    assert not layer.state_dict()


def test_regularizers_say_which_hyperparameters_they_read():
    assert isinstance(Cutout("holes", "length"), Augmentation)
    assert Cutout("holes", "length").names == ("holes", "length")
    assert isinstance(L2("decay"), Penalty)
    assert L2("decay").names == ("decay",)
    assert isinstance(ChannelDropout("rate"), Regularizer)
    assert repr(Dropout("rate")) == "Dropout(rate)"
