"""The ready tasks of language: their networks, what they tune, runs on a small text, and wrong options."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import ray_deltastn as rd
from ray_deltastn.tasks import build_task
from ray_deltastn.tasks.language_networks import LSTMModel
from ray_deltastn.tune.config import ExperimentConfig
from tests.tasks import grammar

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {
    "ptb-lstm": {"units": 12, "embedding": 8, "batch": 4, "length": 10},
    "char-transformer": {"width": 16, "heads": 2, "layers": 2, "batch": 8, "length": 16},
}


@pytest.fixture
def text(tmp_path):
    """A folder with a small text."""
    return str(grammar.folder(tmp_path))


def built(name, text, **options):
    torch.manual_seed(0)
    return build_task({"task": name, "path": text, **SMALL[name], **options})


def test_the_lstm_has_the_sizes_and_ranges_of_the_paper(text):
    task = build_task({"task": "ptb-lstm", "path": text, "batch": 2, "length": 70})
    sizes = [(layer.layer.input_size, layer.layer.hidden_size) for layer in task.model.layers]
    assert sizes == [(650, 650), (650, 650)]
    assert task.model.decoder.weight is task.model.embedding.embedding.weight
    assert task.train.length == 70
    found = task.space.hyperparameters
    assert {p.initial for p in found.values()} == {0.05}
    assert {name: p.bounds for name, p in found.items()} == {
        **dict.fromkeys(
            ("embedding_dropout", "input_dropout", "hidden_dropout", "output_dropout", "dropconnect"), (0.0, 0.95)
        ),
        **dict.fromkeys(("activation", "temporal_activation"), (0.0, 4.0)),
    }
    assert [name for name, p in found.items() if p.per == "batch"] == ["dropconnect"]


def test_the_lstm_is_the_plain_network_in_evaluation_mode():
    torch.manual_seed(0)
    model = LSTMModel(11, units=6, embedding=4, layers=3).double().eval()
    tokens = torch.randint(0, 11, (5, 7))
    state = tuple((torch.randn(5, size).double(), torch.randn(5, size).double()) for size in (6, 6, 4))
    output, after = model(tokens, state)
    x = model.embedding.embedding(tokens)
    for layer, (h, c), (h_after, c_after) in zip(model.layers, state, after, strict=True):
        steps = []
        for t in range(7):
            cell = nn.LSTMCell(layer.layer.input_size, layer.layer.hidden_size).double()
            own = layer.layer.state_dict()
            cell.load_state_dict({name: own[f"{name}_l0"] for name in cell.state_dict()})
            h, c = cell(x[:, t], (h, c))
            steps.append(h)
        x = torch.stack(steps, 1)
        torch.testing.assert_close(h_after, h)
        torch.testing.assert_close(c_after, c)
    torch.testing.assert_close(output, (x @ model.decoder.weight.T + model.decoder.bias).transpose(1, 2))


def test_the_transformer_sees_no_later_character(text):
    task = built("char-transformer", text)
    model = task.model.eval()
    tokens = torch.randint(0, model.embedding.num_embeddings, (3, 16))
    other = tokens.clone()
    other[:, 9:] = (other[:, 9:] + 1) % model.embedding.num_embeddings
    one, two = model(tokens), model(other)
    torch.testing.assert_close(one[..., :9], two[..., :9])
    assert not torch.allclose(one[..., 9:], two[..., 9:])


@pytest.mark.parametrize("untied", [False, True])
def test_decay_of_the_transformer_covers_each_matrix_once(text, untied):
    task = built("char-transformer", text, untied=untied)
    weights = {name: p for name, p in task.model.named_parameters() if p.dim() > 1}
    covered = [
        name
        for penalty in task.penalties
        for layer in penalty.layers
        for name in weights
        if name.startswith(f"{layer}.")
    ]
    assert sorted(covered) == sorted(weights)


@pytest.mark.parametrize("method", ["delta-stn", "centered-stn", "stn"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("ptb-lstm", {}), ("ptb-lstm", {"untied": True, "layers": 1}), ("char-transformer", {})],
    ids=["lstm", "one layer", "transformer"],
)
def test_a_run_tunes_every_hyperparameter_and_every_weight_responds(text, method, name, options):
    task = built(name, text, limit=800, **options)
    tuner = rd.SelfTuner(task, method, epochs=1, lr=0.1, warmup=0, train_interval=1, clip_grad=0.25)
    assert not tuner.coverage.uncovered
    before = tuner.space.lam.detach().clone()
    *_, report = tuner.fit()
    assert (tuner.space.lam != before).all()
    for split in ("valid", "test"):
        loss = report[f"{split}_loss"]
        if name == "ptb-lstm":
            assert report[f"{split}_perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
        else:
            assert report[f"{split}_bits_per_character"] == pytest.approx(loss / math.log(2), rel=1e-5)


def test_a_regularised_run_learns_the_grammar(text):
    task = built("ptb-lstm", text, limit=600, length=5)
    words = task.model.decoder.out_features
    *_, report = rd.SelfTuner(task, epochs=3, lr=5.0, momentum=0.0, clip_grad=0.25, warmup=1, train_interval=2).fit()
    assert report["valid_perplexity"] < 0.5 * words


def test_another_vocabulary_is_refused_on_resume(tmp_path):
    state = rd.SelfTuner(built("ptb-lstm", str(grammar.folder(tmp_path / "one"))), epochs=1).state_dict()
    other = grammar.folder(tmp_path / "two")
    for path in other.iterdir():
        path.write_text(path.read_text().replace("cat", "cow"))
    tuner = rd.SelfTuner(built("ptb-lstm", str(other)), epochs=1)
    with pytest.raises(
        ValueError, match=r"`state` must come from the same task, got '\w+' for 'vocabulary', here '\w+'"
    ):
        tuner.load_state_dict(state)


def test_one_book_is_enough(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text(grammar.lines(60))
    words = sum(len(line.split()) + 1 for line in book.read_text().splitlines())
    for name, size in (("ptb-lstm", words), ("char-transformer", len(book.read_text()))):
        task = built(name, str(book), batch=2, length=20)
        assert sum(len(part.tokens) for part in (task.train, task.valid, task.test)) == size
        *_, report = rd.SelfTuner(task, "fixed", epochs=1, momentum=0.0).fit()
        assert report["valid_loss"] < report["train_loss"] + 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ptb-lstm", {"batch": 90}, r"`n // batch > length` must hold .* of the validation text, got n=.*batch=90"),
        ("ptb-lstm", {"path": 3}, "`path` must name a text file or a folder with texts, got 3"),
        ("ptb-lstm", {"units": 0}, "`units` must be a whole number >= 1, got 0"),
        ("ptb-lstm", {"layers": 1}, "`units = embedding` must hold for one layer .* got units=12 and embedding=8"),
        ("char-transformer", {"heads": 3}, "`heads` must divide `width`, got heads=3 and width=16"),
    ],
)
def test_wrong_options_are_named(text, name, options, message):
    with pytest.raises(ValueError, match=message):
        built(name, options.pop("path", text), **options)


@pytest.mark.slow
def test_ten_steps_of_the_configuration_of_the_paper_move_all_values_by_adam(tmp_path):
    pytest.importorskip("ray")
    text = grammar.folder(tmp_path, counts=(4000, 600, 600))
    changes = [f"options.path={text}", "train.warmup=0", "train.steps_per_report=10"]
    config = ExperimentConfig.read(CONFIGS / "ptb_lstm.yaml", changes)
    torch.manual_seed(0)
    tuner = rd.SelfTuner(build_task({"task": config.task, **config.options}), **config.train)
    assert sum(p.numel() for p in tuner.model.layers.parameters()) == 2 * 4 * 650 * (650 + 650 + 2)
    before = tuner.space.lam.detach().clone()
    report = tuner.step()
    moves = (tuner.space.lam - before).abs()
    assert report["hyper_steps"] == 5
    assert (moves > 0).all()
    assert (moves <= 5 * 0.01 * 1.5).all()
    assert torch.equal(tuner.space.scale, torch.ones_like(tuner.space.scale))
    assert report["valid_loss"] < 10
