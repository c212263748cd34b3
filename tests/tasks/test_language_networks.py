"""Where the regularisers of the networks of language act: each network in training mode against plain operations."""

import torch
import torch.nn.functional as F

import ray_deltastn as rd
from ray_deltastn.regularizers import PassValues, Regularizer
from ray_deltastn.regularizers.rates import ReadRates
from ray_deltastn.tasks.language_networks import LSTMModel, Transformer

B, T, WORDS = 3, 5, 11


def in_a_pass(model, shared=()):
    """Bind all regularisers of a model in float64 to different values for each example, and return these values."""
    names = sorted({name for layer in model.modules() if isinstance(layer, Regularizer) for name in layer.names})
    space = rd.HyperSpace(
        **{n: rd.Bounded(0.3, low=0.0, high=9.0, per="batch" if n in shared else "example") for n in names}
    )
    pass_values = PassValues(space, torch.Generator().manual_seed(7))
    made = torch.Generator().manual_seed(3)
    rates = {n: 0.2 + 0.5 * torch.rand(() if n in shared else (B,), generator=made, dtype=torch.float64) for n in names}
    pass_values.values, pass_values.activations = rates, []
    for layer in model.modules():
        if isinstance(layer, Regularizer):
            layer.bind(pass_values)
    return pass_values, rates


class Masks:
    """Masks over 1 − p, drawn in the order in which a network meets its regularisers."""

    def __init__(self, rates):
        self.rates, self.generator = rates, torch.Generator().manual_seed(7)

    def __call__(self, name, *shape):
        p = self.rates[name]
        p = p.view(-1, *(1,) * (len(shape) - 1)) if p.dim() else p
        return (torch.rand(shape, generator=self.generator, dtype=torch.float64) >= p).double() / (1 - p)


def test_the_regularisers_of_the_lstm_act_where_its_docstring_says():
    torch.manual_seed(0)
    model = LSTMModel(WORDS, units=6, embedding=4, layers=3).double().train()
    tokens = torch.randint(0, WORDS, (B, T))
    state = tuple((torch.randn(B, size).double(), torch.randn(B, size).double()) for size in (6, 6, 4))
    pass_values, rates = in_a_pass(model, shared=("dropconnect",))
    output, after = model(tokens, state)
    penalty = sum(term(x) for term, x in pass_values.activations)

    mask = Masks(rates)
    words = mask("embedding_dropout", B, WORDS).gather(1, tokens)
    x = model.embedding.embedding.weight[tokens] * words[..., None]
    x = x * mask("input_dropout", B, 1, 4)
    for number, (layer, (h, c), (h_after, c_after)) in enumerate(zip(model.layers, state, after, strict=True)):
        x = x * mask("hidden_dropout", B, 1, 6) if number else x
        own = layer.layer
        hidden = own.weight_hh_l0 * mask("dropconnect", *own.weight_hh_l0.shape)
        steps = []
        for t in range(T):
            gates = x[:, t] @ own.weight_ih_l0.T + own.bias_ih_l0 + h @ hidden.T + own.bias_hh_l0
            i, f, g, o = gates.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            steps.append(h)
        x = torch.stack(steps, 1)
        torch.testing.assert_close((h_after, c_after), (h, c), rtol=1e-10, atol=1e-12)
    changes = ((x[:, 1:] - x[:, :-1]) ** 2).mean((1, 2))
    x = x * mask("output_dropout", B, 1, 4)
    expected = rates["temporal_activation"] * changes + rates["activation"] * (x**2).mean((1, 2))
    torch.testing.assert_close(penalty, expected, rtol=1e-10, atol=1e-12)
    scores = x @ model.decoder.weight.T + model.decoder.bias
    torch.testing.assert_close(output, scores.transpose(1, 2), rtol=1e-10, atol=1e-12)


def test_the_regularisers_of_the_transformer_act_where_its_docstring_says():
    torch.manual_seed(0)
    width, heads = 8, 2
    model = Transformer(WORDS, T, width, layers=2, heads=heads).double().train()
    tokens = torch.randint(0, WORDS, (B, T))
    _, rates = in_a_pass(model)
    with ReadRates():
        output = model(tokens)

    mask = Masks(rates)
    x = (model.embedding.weight[tokens] + model.positions.weight[:T]) * mask("embedding_dropout", B, T, width)
    later = torch.ones(T, T).triu(1).bool()
    for block in model.blocks:
        mixed = block.attention["in"](F.layer_norm(x, (width,)))
        q, k, v = (part.view(B, T, heads, -1).transpose(1, 2) for part in mixed.chunk(3, -1))
        scores = (q @ k.transpose(2, 3) / (width / heads) ** 0.5).masked_fill(later, -torch.inf)
        y = scores.softmax(-1) * mask("attention_dropout", B, heads, T, T) @ v
        y = block.attention["out"](y.transpose(1, 2).reshape(B, T, width))
        x = x + y * mask("residual_dropout", B, T, width)
        y = F.gelu(block.mlp["in"](F.layer_norm(x, (width,)))) * mask("mlp_dropout", B, T, 4 * width)
        x = x + block.mlp["out"](y) * mask("residual_dropout", B, T, width)
    expected = F.layer_norm(x, (width,)) @ model.decoder.weight.T
    torch.testing.assert_close(output, expected.transpose(1, 2), rtol=1e-10, atol=1e-12)
