"""The command that measures networks of libraries: what its record says, and what counts as a line."""

import json

import pytest
import torch.nn.functional as F
from torch import nn

from benchmarks.common.tables import models as tables
from benchmarks.models.entry import Entry, images
from benchmarks.models.measure import measure
from tests.models.checked import require

LIBRARIES = ("transformers", "peft", "timm", "torch_geometric", "rtdl_revisiting_models")


class Negative(nn.Module):
    """A wrapper that flips the signs of the scores."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return -self.network(x)


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))


def test_lines_count_what_a_task_needs_besides_the_network():
    def loss(output, target):
        """Not counted."""
        return F.cross_entropy(output, target)

    loss.__module__ = "benchmarks.made"
    assert Entry("net", "torch", linear, images).lines == 0
    assert Entry("net", "torch", linear, images, loss).lines == 2
    assert Entry("net", "torch", linear, images, batch="labels", attributes=("dropout",)).lines == 2


def test_the_error_is_relative_to_the_oracle(monkeypatch):
    found = measure(Entry("net", "torch", linear, images, wrap=Negative))
    assert (found.works, found.share) == (True, 1.0)
    assert max(found.linearised, found.displaced) < 1e-12
    monkeypatch.setattr("ray_deltastn.response.response.Response.fold", lambda self, delta: twice(self, delta))
    found = measure(Entry("net", "torch", linear, images))
    assert found.linearised == pytest.approx(0.5)


def twice(response, delta):
    """Moved weights with twice the change."""
    rows = response.row_change(delta[None])[0]
    return {s.name: s.parameter + 2 * s.change(rows, response.direction(s)) for s in response.slots}


def test_a_refused_network_has_its_reason():
    found = measure(Entry("net", "torch", lambda: linear().requires_grad_(False), images))
    assert (found.works, found.share) == (False, 0.0)
    assert found.reason == "ValueError: `model` needs at least one trainable parameter, got none"
    row = {**found.__dict__, "reason": "ValueError: `model` must respond, got none"}
    assert tables.models({"rows": [row]}).splitlines()[-1].endswith("| no | 0.0% | – | – | 0 |")
    assert tables.gaps({"rows": [row]}).splitlines()[-1].endswith("| ValueError: `model` must respond, got none |")


def test_the_command_writes_the_networks_that_are_named(tmp_path, refusal):
    require(*LIBRARIES)
    from benchmarks.models.__main__ import main

    main(["--only", "MLP", "--json", str(tmp_path / "record.json")])
    record = json.loads((tmp_path / "record.json").read_text())
    assert [(row["library"], row["name"], row["works"], row["share"]) for row in record["rows"]] == [
        ("rtdl", "MLP", True, 1.0)
    ]
    assert "`--only` must name networks, got Bart; they are: LSTM, GRU" in refusal(main, "--only", "Bart")
