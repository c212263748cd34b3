"""Dense float64 oracles: they compute every weight change and every Jacobian, row by row and example by example.

| symbol            | code       | shape        | meaning                                             |
|-------------------|------------|--------------|-----------------------------------------------------|
| δ_b               | `delta[b]` | (h,)         | displacement of one example                         |
| ΔW = (Uδ) ⊙_row W | `change`   | parameter's  | change of one parameter for one example (3.14, E.1) |
| J_yw              | `jacobian` | (n, …)       | Jacobian of one example's output, by reverse mode   |
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

RTOL = 1e-9


def assert_close(value, oracle, rtol=RTOL, scale=None):
    """‖value − oracle‖ ≤ rtol·‖oracle‖ (or rtol·scale)."""
    assert value.shape == oracle.shape, f"shapes {tuple(value.shape)} and {tuple(oracle.shape)} differ"
    error = (value - oracle).norm().item()
    size = oracle.norm().item() if scale is None else scale
    assert error <= rtol * size, f"error {error:.3e} > {rtol:g} × {size:.3e}"


def assert_all_close(values, oracles, rtol=RTOL):
    """Compare each tensor relative to the norm of its oracle; if that is zero by symmetry, to the largest norm."""
    values, oracles = list(values), list(oracles)
    assert len(values) == len(oracles)
    largest = max(o.norm().item() for o in oracles)
    for value, oracle in zip(values, oracles, strict=True):
        norm = oracle.norm().item()
        assert_close(value, oracle, rtol, scale=norm if norm > 1e-9 * largest else largest)


def randomise(response, seed=0):
    """Fill U, which starts at zero, and all directions with random numbers; rows for padding stay zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        response.U.normal_(generator=generator).mul_(0.5)
        for slot in response.slots:
            direction = response.direction(slot)
            padding = (direction == 0).flatten(1).all(1) if slot.rows == "feature" else None
            direction.normal_(generator=generator)
            if padding is not None:
                direction[padding] = 0.0
    return response


def grad(output, inputs):
    """Gradients; they are zero if the output does not depend on the input."""
    return torch.autograd.grad(output, inputs, allow_unused=True, materialize_grads=True)


# --- weights -------------------------------------------------------------------------------------------------------


def structure(model, parameter):
    """The parts of a parameter that move together: rows, columns (if an embedding uses it) or single elements."""
    users = [m for m in model.modules() if any(p is parameter for p in m._parameters.values())]
    whole = parameter.dim() == 1 or parameter.shape[0] == 1
    owned = any(any(True for c in m.children() if any(True for _ in c.parameters())) for m in users)
    if whole or any(isinstance(m, nn.LayerNorm | nn.RMSNorm) for m in users):
        return "elements"
    if owned and not any(isinstance(m, nn.MultiheadAttention) for m in users):
        return "elements"
    columns = nn.Embedding | nn.EmbeddingBag | nn.modules.conv._ConvTransposeNd
    return "columns" if any(isinstance(m, columns) for m in users) else "rows"


def dense_change(model, response, name, delta_row):
    """ΔW = (Uδ) ⊙_row W_resp of one parameter for one displacement (h,), from the definition (3.14)."""
    slot = next(s for s in response.slots if s.name == name)
    direction = response.direction(slot)
    factor = [(row * delta_row).sum() for row in response.U[slot.start : slot.stop]]
    how = structure(model, slot.parameter)
    if how == "rows":
        return torch.stack([factor[r] * direction[r] for r in range(direction.shape[0])])
    if how == "columns":
        return torch.stack([factor[c] * direction[:, c] for c in range(direction.shape[1])], dim=1)
    elements = direction.reshape(-1)
    return torch.stack([factor[i] * elements[i] for i in range(len(elements))]).reshape(direction.shape)


def dense_changes(model, response, delta_row):
    """ΔW of every responding parameter, by name."""
    return {slot.name: dense_change(model, response, slot.name, delta_row) for slot in response.slots}


def dense_weights(model, response, delta_row):
    """w₀ + ΔW of every parameter, by name; it is w₀ for a parameter without response."""
    changes = dense_changes(model, response, delta_row)
    return {name: p + changes[name] if name in changes else p for name, p in model.named_parameters()}


def dense_squared_norm(model, response, delta, biases=True):
    """‖w₀ + Θδ_b‖² for each example, (B,)."""
    norms = []
    for row in delta:
        weights = dense_weights(model, response, row)
        norms.append(sum(w.square().sum() for w in weights.values() if biases or w.dim() > 1))
    return torch.stack(norms)


# --- predictions of single examples --------------------------------------------------------------------------------


def jacobian(model, x_row):
    """Output (n,) and its Jacobian with respect to every parameter, for one example, by n backward passes."""
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    output = functional_call(model, parameters, (x_row[None],))[0].flatten()
    rows = [
        torch.autograd.grad(o, list(parameters.values()), retain_graph=True, allow_unused=True, materialize_grads=True)
        for o in output
    ]
    return output.detach(), {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(parameters)}


def dense_prediction(model, response, delta, x, linearised):
    """f(x_b, w₀ + ΔW_b), or f(x_b, w₀) + J_yw ΔW_b if linearised, for one example at a time.

    It is differentiable in Θ and δ. If it is not linearised, it is also differentiable in w₀.
    """
    outputs = []
    for b in range(x.shape[0]):
        row = delta[b if delta.shape[0] > 1 else 0]
        if linearised:
            with torch.no_grad():
                shape = model(x[b : b + 1]).shape[1:]
            output, J = jacobian(model, x[b])
            for name, change in dense_changes(model, response, row).items():
                output = output + J[name].flatten(1) @ change.flatten()
            outputs.append(output.view(shape))
        else:
            outputs.append(functional_call(model, dense_weights(model, response, row), (x[b : b + 1],))[0])
    return torch.stack(outputs)


# --- predictions with batch statistics -----------------------------------------------------------------------------


def batch_forward(model, weights, x):
    """Forward pass of a `Sequential`, written out: one set of weights per example, batch statistics of all examples."""
    for name, layer in model.named_children():
        mine = [{k.split(".")[1]: v for k, v in w.items() if k.split(".")[0] == name} for w in weights]
        if isinstance(layer, nn.Linear):
            x = torch.stack([w["weight"] @ row + w["bias"] for w, row in zip(mine, x, strict=True)])
        elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[layer.weight.dim() - 2]
            x = torch.cat([convolve(row[None], w["weight"], w["bias"]) for w, row in zip(mine, x, strict=True)])
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            axes = (0, *range(2, x.dim()))
            mean = x.mean(axes, keepdim=True)
            x = (x - mean) / ((x - mean).square().mean(axes, keepdim=True) + layer.eps).sqrt()
            shape = (-1, *(1,) * (x.dim() - 2))
            x = torch.stack(
                [row * w["weight"].view(shape) + w["bias"].view(shape) for w, row in zip(mine, x, strict=True)]
            )
        elif isinstance(layer, nn.Tanh | nn.Flatten):
            x = layer(x)
        else:
            raise TypeError(f"the oracle has no rule for {layer}")
    return x


def batch_prediction(model, response, delta, x, linearised):
    """Like `dense_prediction`, but with batch statistics of all examples. Each example has its own weights."""
    changes = [dense_changes(model, response, row) for row in delta.expand(x.shape[0], -1)]
    base = dict(model.named_parameters())

    def at(t):
        return batch_forward(model, [{n: p + t * c.get(n, 0.0) for n, p in base.items()} for c in changes], x)

    if not linearised:
        return at(1.0)
    primal, tangent = torch.func.jvp(at, (torch.zeros((), dtype=x.dtype),), (torch.ones((), dtype=x.dtype),))
    return primal + tangent


class NoSync(TorchDispatchMode):
    """Fails on operations that make the host wait for a GPU: reading a number, shapes from data, copies of lists."""

    FORBIDDEN = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "lift_fresh",
        "unique",
        "is_nonzero",
        "equal",
        "allclose",
        "masked_scatter",
        "bincount",
        "repeat_interleave",
    )
    #: Methods that read a tensor on a CPU without calling an operation of PyTorch.
    WAYS_OUT = ("tolist", "numpy", "cpu", "__array__", "item")

    def __enter__(self):
        self._functions = _NoWayOut(self.WAYS_OUT)
        self._functions.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._functions.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.FORBIDDEN, func
        if name in ("index", "index_put", "index_put_"):
            assert not any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]), f"{name} by a mask"
        return func(*args, **(kwargs or {}))


class _NoWayOut(TorchFunctionMode):
    def __init__(self, names):
        super().__init__()
        self.names = names

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert getattr(func, "__name__", "") not in self.names, func
        return func(*args, **(kwargs or {}))


def window(count, kept, generator):
    """The rows of a minibatch that train Θ, with the number that the step draws next."""
    start = 0 if kept == count else torch.randint(count, (1,), generator=generator).item()
    return [(start + i) % count for i in range(kept)]
