"""The dropout layers of a given network become tuned ones, in groups, and nothing else changes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import alexnet, mobilenet_v2

import ray_deltastn as rd
from ray_deltastn.regularizers import RateError


def network():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3, inplace=True))
    return nn.Sequential(nn.Dropout(0.1), nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.5), block, nn.Linear(8, 3))


def test_all_layers_share_one_rate_by_default():
    model = network()
    found = rd.tune_dropouts(model)
    assert {name: one.initial for name, one in found.items()} == {"dropout": 0.3}
    assert [type(model[i]) for i in (0, 3)] == [rd.Dropout] * 2
    assert model[4][1].names == ("dropout",)


def test_groups_are_by_the_first_expression_that_matches_and_others_stay():
    model = network()
    found = rd.tune_dropouts(model, {"input": "^0$", "block": "^4"}, high=0.8, per="batch")
    assert {name: (one.initial, one.high, one.per) for name, one in found.items()} == {
        "input": (0.1, 0.8, "batch"),
        "block": (0.3, 0.8, "batch"),
    }
    assert model[0].names == ("input",)
    assert model[4][1].names == ("block",)
    assert type(model[3]) is nn.Dropout


def test_weights_keys_and_outputs_in_evaluation_mode_stay():
    model = network()
    before, x = copy.deepcopy(model).eval(), torch.randn(5, 8)
    rd.tune_dropouts(model)
    assert list(model.state_dict()) == list(before.state_dict())
    assert torch.equal(model.eval()(x), before(x))


@pytest.mark.parametrize(("kind", "ours"), [(nn.Dropout1d, "ChannelDropout"), (nn.Dropout2d, "ChannelDropout")])
def test_dropout_of_channels_stays_one_of_channels(kind, ours):
    model = nn.Sequential(kind(0.2))
    rd.tune_dropouts(model)
    assert type(model[0]).__name__ == ours


def test_a_rate_of_zero_starts_above_zero():
    model = nn.Sequential(nn.Dropout(0.0))
    assert rd.tune_dropouts(model)["dropout"].initial == 0.01


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        (
            {"head": "head"},
            r"`groups\['head'\]` must match a dropout layer .*got 'head'; the dropout layers are: 0, 3, 4\.1",
        ),
        ({"all": "", "rest": ""}, r"`groups\['rest'\]` must match"),
    ],
)
def test_an_expression_without_a_layer_is_refused_with_the_layers(groups, reason):
    with pytest.raises(ValueError, match=reason):
        rd.tune_dropouts(network(), groups)


def test_a_network_without_dropout_is_refused():
    with pytest.raises(ValueError, match="the dropout layers are: none"):
        rd.tune_dropouts(nn.Linear(2, 2))


@pytest.mark.parametrize("make", [alexnet, mobilenet_v2])
def test_a_network_of_torchvision_is_tuned_without_rewriting(make):
    torch.manual_seed(0)
    model = make(num_classes=3)
    found = rd.tune_dropouts(model, {"classifier": "^classifier"})
    x, y = torch.randn(8, 3, 64, 64), torch.randint(0, 3, (8,))
    task = rd.Task(rd.HyperSpace(**found), model, F.cross_entropy, (x, y), (x, y))
    tuner = rd.SelfTuner(task, epochs=1, batch_size=8, warmup=0, train_interval=1, lr=1e-3)
    report = tuner.step()
    assert tuner.coverage.share == 1.0
    assert report["hyperparameters/classifier"] != found["classifier"].initial
    plain = make(num_classes=3)
    plain.load_state_dict(tuner.export())


def test_a_layer_in_two_places_stays_one_layer():
    drop = nn.Dropout(0.3)
    model = nn.Sequential(nn.Linear(8, 8), drop, nn.Linear(8, 8), drop)
    rd.tune_dropouts(model)
    assert isinstance(model[1], rd.Dropout)
    assert model[1] is model[3]


def test_a_refused_call_changes_nothing_and_the_mode_stays():
    model = network().eval()
    for groups, high in (({"input": "^0$", "none": "nothing"}, 0.9), (None, 2.0)):
        with pytest.raises(ValueError, match="must"):
            rd.tune_dropouts(model, groups, high=high)
        assert type(model[0]) is nn.Dropout
    rd.tune_dropouts(model)
    model(torch.randn(2, 8))


class Reader(nn.Module):
    """A layer whose rate is a number that it gives to functions."""

    def __init__(self):
        super().__init__()
        self.linear, self.attention_dropout = nn.Linear(8, 8), 0.2

    def forward(self, x):
        x = F.dropout(self.linear(x), p=self.attention_dropout, training=self.training)
        rate = self.attention_dropout if self.training else 0.0
        return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], dropout_p=rate)[:, 0]


def test_a_number_becomes_a_rate_if_its_attribute_is_named():
    torch.manual_seed(0)
    model = nn.Sequential(Reader(), nn.Dropout(0.4), Reader(), nn.Linear(8, 3))
    before, keys = copy.deepcopy(model).eval(), list(model.state_dict())
    found = rd.tune_dropouts(model, {"attention": "attention", "rest": ""}, attributes=["attention_dropout"])
    assert {name: one.initial for name, one in found.items()} == {"attention": 0.2, "rest": 0.4}
    x, y = torch.randn(8, 8), torch.randint(0, 3, (8,))
    assert torch.equal(model.eval()(x), before(x))
    assert list(model.state_dict()) == keys
    task = rd.Task(rd.HyperSpace(**found), model, F.cross_entropy, (x, y), (x, y))
    tuner = rd.SelfTuner(task, epochs=1, batch_size=8, warmup=0, train_interval=1)
    assert tuner.objective.reads_rates
    report = tuner.step()
    assert report["hyperparameters/attention"] != 0.2


def test_rates_that_stay_are_named_with_what_helps():
    model = nn.ModuleDict(
        {
            "drop": nn.Dropout(0.1),
            "reader": Reader(),
            "many": nn.LSTM(4, 4, 2, dropout=0.3),
            "one": nn.MultiheadAttention(4, 2, dropout=0.2),
            "off": nn.MultiheadAttention(4, 2),
        }
    )
    with pytest.warns(UserWarning, match="stay as they are") as warned:
        rd.tune_dropouts(model)
    assert str(warned[0].message) == (
        "numbers that seem to be rates of dropout stay as they are: 'reader.attention_dropout' (0.2), "
        "'many.dropout' (0.3), 'one.dropout' (0.2); those of LSTM cannot be tuned, and 0 turns them off; "
        "`attributes=['attention_dropout', 'dropout']` tunes those that go to `F.dropout` or to fused attention"
    )


def test_other_dropout_layers_are_named():
    with pytest.warns(UserWarning, match=r"'1\.p' \(0\.2\); those of AlphaDropout cannot be tuned"):
        rd.tune_dropouts(nn.Sequential(nn.Dropout(0.1), nn.AlphaDropout(0.2)))


def test_a_network_whose_only_rates_are_numbers_is_refused_with_their_names():
    with pytest.raises(ValueError, match=r"are: none; `attributes` can name .*: '0.attention_dropout' \(0\.2\)"):
        rd.tune_dropouts(nn.Sequential(Reader()))


def test_rates_of_closed_layers_stay_although_they_are_named():
    layer = nn.LSTM(4, 4, 2, dropout=0.3)
    model = nn.Sequential(nn.Dropout(0.1), layer)
    with pytest.warns(UserWarning, match=r"'1\.dropout' \(0\.3\); those of .* cannot be tuned, and 0 turns them off$"):
        rd.tune_dropouts(model, attributes=["dropout"])
    assert layer.dropout == 0.3


def test_a_number_that_goes_elsewhere_is_refused_before_the_first_step():
    class Path(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.drop_prob = nn.Linear(8, 3), 0.2

        def forward(self, x):
            return self.linear(x) / (1 - self.drop_prob) if self.training else self.linear(x)

    model = Path()
    found = rd.tune_dropouts(model, attributes=["drop_prob"])
    data = (torch.randn(6, 8), torch.randn(6, 3))
    with pytest.raises(RateError, match=r"the rate of Dropout\(dropout\) must be used by .*got arithmetic"):
        rd.SelfTuner(rd.Task(rd.HyperSpace(**found), model, F.mse_loss, data, data), epochs=1)


def test_each_rate_of_pytorchs_encoder_can_be_tuned():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.2, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3))
    found = rd.tune_dropouts(model, {"attention": "self_attn", "rest": ""}, attributes=["dropout"])
    data = (torch.randn(16, 5, 8), torch.randn(16, 5, 3))
    task = rd.Task(rd.HyperSpace(**found), model, F.mse_loss, data, data)
    tuner = rd.SelfTuner(task, epochs=1, batch_size=8, warmup=0, train_interval=1)
    tuner.step()
    assert tuner.hyperparameters()["attention"] != pytest.approx(0.2, rel=1e-3)
