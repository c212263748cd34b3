"""Networks of torch_geometric on one graph, whose nodes are training, validation or test nodes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import models

from benchmarks.models.entry import Entry

NODES, EDGES, FEATURES, CLASSES = 12, 30, 5, 3


class Graphs(nn.Module):
    """A network of nodes for a batch of graphs: a graph is an example."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Scores of all nodes (B, N, classes)."""
        return torch.stack([self.network(nodes, of) for nodes, of in zip(x, edges, strict=True)])


def network(kind: str) -> Any:
    """A network with two layers."""
    return getattr(models, kind)(FEATURES, 8, 2, CLASSES, dropout=0.1)


def graph(count: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A graph as one example, with the classes of its nodes and the mask of the nodes that count."""
    x, edges = torch.randn(1, NODES, FEATURES), torch.randint(0, NODES, (1, 2, EDGES))
    return (x, edges), (torch.randint(0, CLASSES, (1, NODES)), torch.rand(1, NODES) < 0.5)


def masked(output: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy of the nodes under the mask."""
    return F.cross_entropy(output[target[1]], target[0][target[1]])


of = partial(Entry, library="torch_geometric", data=graph, loss=masked, wrap=Graphs, per="batch")
PYG = [of(kind, build=partial(network, kind)) for kind in ("GCN", "GAT", "GIN", "GraphSAGE")]
