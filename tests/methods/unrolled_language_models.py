"""Runs of small language models on three segments, by the package and written out by hand in float64.

The oracle has its own copies of w₀, Θ, λ, σ and of the states of both splits. It computes each example by itself, with
dense weights, and draws the same numbers: of each pass one uniform number per feature for each dropout layer, and of
each perturbed pass a normal z for each example before them.
"""

import torch
import torch.nn.functional as F

import ray_deltastn as rd
from ray_deltastn.methods import Objective, StepOptions, Steps, get_method
from ray_deltastn.regularizers import PassValues
from ray_deltastn.response import Response
from ray_deltastn.training.segments import SegmentStream
from tests.oracles import grad, randomise
from tests.training.recurrent import HIGH, LAYERS, MODELS, UNITS, corpus, first_state, make_space

RATES = {"weights": 0.3, "theta": 0.2, "lam": 0.1, "scale": 0.05}
TAU = 0.01


class Run:
    """A model with a random response, its steps, and both splits: three segments of four tokens, one of three."""

    def __init__(self, kind, method, hyper_pass="linearized"):
        torch.manual_seed(3)
        self.model = MODELS[kind]().double()
        self.space = make_space().double()
        self.generator = torch.Generator().manual_seed(5)
        values = PassValues(self.space, self.generator)
        for layer in self.model.modules():
            if isinstance(layer, rd.Regularizer):
                layer.bind(values)
        self.response = randomise(Response(self.model, 2))
        self.objective = Objective(
            self.model,
            F.cross_entropy,
            self.space,
            values,
            get_method(method),
            self.response,
            penalty=[rd.L2("decay")],
            carries=True,
        )
        self.objective.reads_rates = False
        state = first_state(kind, torch.float64)
        cpu = torch.device("cpu")
        self.train = SegmentStream(rd.Segments(corpus(3 * 12, 1), 3, 4, state), "train", cpu)
        self.valid = SegmentStream(rd.Segments(corpus(2 * 12, 2), 2, 4, state), "valid", cpu)
        hyper = [
            {"params": [self.space.lam], "lr": RATES["lam"]},
            {"params": [self.space.raw_scale], "lr": RATES["scale"]},
        ]
        self.steps = Steps(
            self.objective,
            torch.optim.SGD(self.model.parameters(), RATES["weights"]),
            torch.optim.SGD(self.response.parameters(), RATES["theta"]),
            torch.optim.SGD(hyper),
            StepOptions(entropy_weight=TAU, hyper_pass=hyper_pass),
        )

    def train_step(self):
        """The loss of a step on the next segment."""
        self.model.train()
        x, y = self.train.next()
        return self.steps.train_step(x, y)

    def hyper_step(self):
        """The loss of a step on the next segment of the validation data."""
        self.model.eval()
        x, y = self.valid.next()
        return self.steps.hyper_step(x, y)

    def numbers(self):
        """w₀, Θ, λ, raw σ and both states by name."""
        found = {f"w₀ {name}": p for name, p in self.model.named_parameters()}
        found |= {f"Θ {slot.name}": self.response.direction(slot) for slot in self.response.slots}
        found |= {"U": self.response.U, "λ": self.space.lam, "raw σ": self.space.raw_scale}
        for stream in (self.train, self.valid):
            found |= {f"{stream.name} {i}": t for i, t in enumerate(stream.state_dict()["state"])}
        return {name: t.detach().clone() for name, t in found.items()}


class Unrolled:
    """The same by hand.

    Args:
        run: a new run, whose numbers are copied.
        kind: `lstm` or `gru`.
    """

    def __init__(self, run, kind):
        self.method, self.how = run.objective.method, run.steps.options.hyper_pass
        self.forward = {"lstm": lstm, "gru": gru}[kind]
        self.layers = {"lstm": 2, "gru": 1}[kind]
        numbers = run.numbers()
        self.w = {name[3:]: t for name, t in numbers.items() if name.startswith("w₀")}
        self.directions = {name[2:]: t for name, t in numbers.items() if name.startswith("Θ")}
        self.rows = {slot.name: slice(slot.start, slot.stop) for slot in run.response.slots}
        self.U, self.lam, self.raw = numbers["U"], numbers["λ"], numbers["raw σ"]
        first = first_state(kind, torch.float64)
        first = list(first) if kind == "lstm" else [first["h"]]
        self.states = {"train": [first] * 3, "valid": [first] * 2}
        self.streams = {s.name: s.segments.tokens.view(s.segments.batch_size, -1) for s in (run.train, run.valid)}
        self.number = dict.fromkeys(self.states, 0)
        self.generator = torch.Generator().manual_seed(5)

    def numbers(self):
        """See `Run.numbers`."""
        found = {f"w₀ {name}": t for name, t in self.w.items()} | {f"Θ {n}": t for n, t in self.directions.items()}
        found |= {"U": self.U, "λ": self.lam, "raw σ": self.raw}
        for split, states in self.states.items():
            found |= {f"{split} {i}": torch.stack(leaf) for i, leaf in enumerate(zip(*states, strict=True))}
        return found

    def segment(self, split):
        start = 4 * self.number[split]
        self.number[split] += 1
        streams = self.streams[split]
        stop = min(start + 4, streams.shape[1] - 1)
        return streams[:, start:stop], streams[:, start + 1 : stop + 1]

    def change(self, delta):
        """Θδ of every parameter for one δ (h,)."""
        found = {}
        for name, direction in self.directions.items():
            factor = self.U[self.rows[name]] @ delta
            if direction.dim() == 1:
                found[name] = factor * direction
            else:
                found[name] = factor * direction if name == "embedding.weight" else factor[:, None] * direction
        return found

    def keeps(self, lam, count):
        """Factors of the dropout layers, (B, 1, units) each, for λ (h,) or (B, h); None in evaluation mode."""
        p = (HIGH * (lam[..., 0] + 2) / 4).reshape(-1, 1, 1)
        drawn = [torch.rand(count, 1, UNITS, generator=self.generator, dtype=torch.float64) for _ in range(self.layers)]
        return [(u >= p) / (1 - p) for u in drawn]

    def passed(self, split, x, delta, linearised, keeps=None):
        """Outputs (B, words, T), the state that each example leaves, and the weights of each example."""
        outputs, states, weights = [], [], []
        for b, tokens in enumerate(x):
            own = [1.0] * self.layers if keeps is None else [keep[b] for keep in keeps]
            before = self.states[split][b]
            change = {} if delta is None else self.change(delta[b])
            moved = {name: p + change.get(name, 0.0) for name, p in self.w.items()}
            output, state = self.forward(self.w if linearised else moved, tokens, before, own)
            if linearised:
                primals, tangents = ({name: of[name] for name in change} for of in (self.w, change))
                _, tangent = torch.func.jvp(
                    lambda w, tokens=tokens, before=before, own=own: self.forward(w, tokens, before, own)[0],
                    (primals,),
                    (tangents,),
                )
                output = output + tangent
            outputs.append(output.T)
            states.append([t.detach() for t in state])
            weights.append(moved)
        return torch.stack(outputs), states, weights

    def train_loss(self, x, y, eps):
        """L_T under ε (B, h) or without, and the state that the pass leaves."""
        lam = self.lam.detach()
        delta = None
        if eps is not None:
            delta = eps if self.method.centered else lam + eps
        elif not self.method.centered:
            delta = lam.expand(len(x), -1)
        at = lam if eps is None else lam + eps
        linearised = self.method.linearized and delta is not None
        output, states, weights = self.passed("train", x, delta, linearised, self.keeps(at, len(x)))
        norms = torch.stack([sum(w.square().sum() for w in one.values()) for one in weights])
        return F.cross_entropy(output, y) + (0.5 * at[..., 1].exp() * norms).mean(), states

    def sample(self, count):
        z = torch.randn(count, 2, generator=self.generator, dtype=torch.float64)
        return F.softplus(self.raw) * z

    def train_step(self):
        """See `Run.train_step`."""
        x, y = self.segment("train")
        if self.method.split:
            self._require(self.w.values())
            loss, left = self.train_loss(x, y, None)
            self.w = _moved(self.w, loss, RATES["weights"])
            self._require([self.U, *self.directions.values()])
            perturbed, _ = self.train_loss(x, y, self.sample(len(x)).detach())
            self._move_theta(perturbed)
        else:
            self._require([self.U, *self.directions.values(), *self.w.values()])
            loss, _ = self.train_loss(x, y, self.sample(len(x)).detach())
            _, left = self.train_loss(x, y, None)
            w = _moved(self.w, loss, RATES["weights"])
            self._move_theta(loss)
            self.w = w
        self.states["train"] = left
        return loss.detach()

    def _move_theta(self, loss):
        moved = _moved({"U": self.U, **self.directions}, loss, RATES["theta"])
        self.U = moved.pop("U")
        self.directions = moved

    def hyper_step(self):
        """See `Run.hyper_step`."""
        x, y = self.segment("valid")
        self._require([self.lam, self.raw])
        eps = self.sample(len(x))
        shift = self.lam - self.lam.detach() if self.method.centered else self.lam
        linearised = self.method.linearized and self.how == "linearized"
        output, _, _ = self.passed("valid", x, eps + shift, linearised)
        loss = F.cross_entropy(output, y) - TAU * (F.softplus(self.raw).log().sum() + _entropy_of_unit(2))
        by_lam, by_raw = grad(loss, [self.lam, self.raw])
        still = None if self.method.centered else self.lam.detach().expand(len(x), -1)
        _, self.states["valid"], _ = self.passed("valid", x, still, False)
        self.lam = (self.lam - RATES["lam"] * by_lam).detach()
        self.raw = (self.raw - RATES["scale"] * by_raw).detach()
        return loss.detach()

    @staticmethod
    def _require(leaves):
        for t in leaves:
            t.requires_grad_()


def _entropy_of_unit(count):
    normal = torch.distributions.Normal(torch.zeros(count).double(), torch.ones(count).double())
    return normal.entropy().sum()


def _moved(tensors, loss, rate):
    gradients = torch.autograd.grad(loss, list(tensors.values()), retain_graph=True)
    return {name: (t - rate * g).detach() for (name, t), g in zip(tensors.items(), gradients, strict=True)}


def lstm(w, tokens, state, keeps):
    """Outputs (T, words) and the state of one example, written out."""
    x = w["embedding.weight"][tokens] * keeps[0]
    ends = []
    for layer in range(LAYERS):
        (h, c), outputs = (part[layer] for part in state), []
        for row in x:
            gates = w[f"recurrent.weight_ih_l{layer}"] @ row + w[f"recurrent.bias_ih_l{layer}"]
            gates = gates + w[f"recurrent.weight_hh_l{layer}"] @ h + w[f"recurrent.bias_hh_l{layer}"]
            i, f, g, o = gates.chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        x = torch.stack(outputs)
        ends.append((h, c))
    return (x * keeps[1]) @ w["head.weight"].T + w["head.bias"], [torch.stack(part) for part in zip(*ends, strict=True)]


def gru(w, tokens, state, keeps):
    """Outputs (T, words) and the state of one example, written out."""
    (h,), outputs = state, []
    for row in w["embedding.weight"][tokens] * keeps[0]:
        inputs = w["cell.weight_ih"] @ row + w["cell.bias_ih"]
        hidden = w["cell.weight_hh"] @ h + w["cell.bias_hh"]
        (xr, xz, xn), (hr, hz, hn) = inputs.chunk(3), hidden.chunk(3)
        r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
        h = (1 - z) * (xn + r * hn).tanh() + z * h
        outputs.append(h)
    return torch.stack(outputs) @ w["head.weight"].T + w["head.bias"], [h]
