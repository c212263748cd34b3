"""Small language models that carry state, and a corpus for them."""

import torch
import torch.nn.functional as F
from torch import nn

import ray_deltastn as rd

WORDS, UNITS, LAYERS = 7, 5, 2
#: Upper bound of the dropout rate.
HIGH = 0.9


class LSTMModel(nn.Module):
    """Two LSTM layers behind an embedding; the state is (h, c), each (B, layers, units)."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, UNITS)
        self.before = rd.VariationalDropout("dropout")
        self.recurrent = nn.LSTM(UNITS, UNITS, LAYERS, batch_first=True)
        self.after = rd.VariationalDropout("dropout")
        self.head = nn.Linear(UNITS, WORDS)

    def forward(self, tokens, state):
        state = tuple(part.transpose(0, 1).contiguous() for part in state)
        h, state = self.recurrent(self.before(self.embedding(tokens)), state)
        return self.head(self.after(h)).transpose(1, 2), tuple(part.transpose(0, 1) for part in state)


class GRUModel(nn.Module):
    """A GRU cell that the model calls step by step; the state is {"h": (B, units)}."""

    def __init__(self, dropout=True):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, UNITS)
        self.before = rd.VariationalDropout("dropout") if dropout else nn.Identity()
        self.cell = nn.GRUCell(UNITS, UNITS)
        self.head = nn.Linear(UNITS, WORDS)

    def forward(self, tokens, state):
        h, outputs = state["h"], []
        for x in self.before(self.embedding(tokens)).unbind(1):
            h = self.cell(x, h)
            outputs.append(h)
        return self.head(torch.stack(outputs, 2).transpose(1, 2)).transpose(1, 2), {"h": h}


MODELS = {"lstm": LSTMModel, "gru": GRUModel}


def first_state(kind, dtype=torch.float32):
    """A first state that is not zero."""
    values = torch.linspace(-0.4, 0.5, LAYERS * UNITS, dtype=dtype).view(LAYERS, UNITS)
    return {"lstm": (values, 2 * values), "gru": {"h": values[0]}}[kind]


def corpus(length, seed=0):
    """Tokens that mostly count up."""
    steps = torch.randint(0, 3, (length,), generator=torch.Generator().manual_seed(seed))
    return steps.cumsum(0) % WORDS


def make_space():
    return rd.HyperSpace(dropout=rd.Bounded(0.2, high=HIGH), decay=rd.Positive(1e-3))


def make_task(kind="lstm", dtype=torch.float32, **changes):
    torch.manual_seed(3)
    state = first_state(kind, dtype)
    given = {
        "space": make_space(),
        "model": MODELS[kind]().to(dtype),
        "loss": F.cross_entropy,
        "train": rd.Segments(corpus(130, 1), 3, 8, state),
        "valid": rd.Segments(corpus(70, 2), 2, 8, state),
        "test": rd.Segments(corpus(40, 3), 1, 8, state),
        "penalty": rd.L2("decay"),
        **changes,
    }
    return rd.Task(**given)


def build(config):
    """A task for a trial."""
    return make_task()


def make_tuner(task=None, method="delta-stn", **settings):
    given = {"epochs": 3, "lr": 0.2, "hyper_lr": 0.05, "train_interval": 2, "warmup_steps": 2, **settings}
    return rd.SelfTuner(task or make_task(), method, **given)
