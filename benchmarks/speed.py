r"""Cost of self-tuning: cycles of a method and of plain training, run in turn in one process.

    python -m benchmarks.speed --nets mlp,cnn,resnet18 --methods stn,centered-stn,delta-stn --json FILE
    python -m benchmarks.speed --nets alexnet,vgg16,resnet18 --methods delta-stn --response-fraction 0.25 \
        --device cuda --batch 128 --precision bf16 --channels-last --graph auto

One cycle has T_train = 5 train steps and T_valid = 1 hyper step. Plain training runs the same 5 train steps in the same
precision. Methods that learn a response tune the dropout rates of the network. `ift` and `unrolled` cannot tune dropout
rates. They tune a weight decay, with constant dropout rates, and the plain training that they are compared with has the
same task. The key `tuned` of a row says which task was used.

- `flop_ratio`: matmul and convolution FLOPs, from `torch.utils.flop_counter`, without fused kernels. They are exact
  and the same on every machine.
- `cpu_time_ratio`, `wall_time_ratio`: medians over pairs of consecutive cycles.
- `saved_memory_ratio`: bytes that autograd keeps for the backward pass, without parameters: the largest pass of the
  method, divided by the largest pass of plain training.
- `images_per_second`: training examples, images or sequences, of the method per second of wall time.
- `peak_memory_ratio`: peak GPU memory of the method, divided by that of plain training, with parameters.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import ray_deltastn as rd
from benchmarks.common import record
from benchmarks.common import sequence_networks as sequences
from benchmarks.common.arguments import number, prepare, whole
from benchmarks.common.machine import hardware, quiet, versions
from ray_deltastn.methods import MethodName, get_method
from ray_deltastn.tasks import networks
from ray_deltastn.training.capture.graphs import EAGER, GraphedSteps
from ray_deltastn.training.options import GraphName, PrecisionName
from ray_deltastn.training.settings import Settings

TRAIN_INTERVAL, VALID_INTERVAL = 5, 1

#: Timed pairs of cycles on a GPU, where a cycle takes milliseconds.
GPU_PAIRS = 50


@dataclass(frozen=True)
class Net:
    """A network of the benchmark.

    Attributes:
        make: constructor.
        batch: examples in a minibatch.
        shape: shape of an example.
        pairs: default number of timed pairs on a CPU.
        words: number of words for sequences of words, which also have a word as the class of each place; 0 for images.
    """

    make: Callable[[], nn.Module]
    batch: int
    shape: tuple[int, ...]
    pairs: int
    words: int = 0

    def data(self, batch: int) -> tuple[Tensor, Tensor]:
        """A random minibatch."""
        if self.words:
            x, y = torch.randint(0, self.words, (2, batch, *self.shape))
            return x, y
        return torch.randn(batch, *self.shape), torch.randint(0, 10, (batch,))


NETS: dict[str, Net] = {
    "mlp": Net(networks.mlp, 128, (1, 28, 28), 10),
    "cnn": Net(networks.simple_cnn, 128, (1, 28, 28), 5),
    "alexnet": Net(networks.alexnet, 32, (3, 32, 32), 2),
    "vgg16": Net(networks.vgg16, 32, (3, 32, 32), 2),
    "resnet18": Net(networks.resnet18, 32, (3, 32, 32), 2),
    "transformer": Net(sequences.Transformer, 32, (sequences.LENGTH,), 5, sequences.WORDS),
    "lstm": Net(sequences.Recurrent, 32, (sequences.LENGTH,), 5, sequences.WORDS),
    "language": Net(sequences.Language, 20, (sequences.LANGUAGE_LENGTH,), 5, sequences.LANGUAGE_WORDS),
    "language-tied": Net(
        partial(sequences.Language, tied=True), 20, (sequences.LANGUAGE_LENGTH,), 5, sequences.LANGUAGE_WORDS
    ),
}


#: Dropout rate of the networks: the initial value if tuned, or the constant.
RATE = 0.05
#: Hyperparameters that a cycle can tune.
TUNED = ("dropout", "decay")


def constant_dropout(model: nn.Module) -> None:
    """Replace the dropout layers of a network, in place, by layers with a constant rate, and take the others out."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, rd.EmbeddingDropout | rd.DropConnect):
                setattr(parent, name, next(child.children()))
            elif isinstance(child, rd.Dropout):
                setattr(parent, name, nn.Dropout(RATE))
            elif isinstance(child, rd.Regularizer):
                setattr(parent, name, nn.Identity())


def _strength(layer: rd.Regularizer) -> rd.Bounded:
    return rd.Bounded(RATE, low=0.0, high=0.95, per="batch" if isinstance(layer, rd.DropConnect) else "example")


class Cycle:
    """One cycle of a method on random data; call it to run it.

    Args:
        net: key of `NETS`.
        method: name of a method.
        response_fraction: share of each minibatch that trains Θ.
        batch: examples in a minibatch.
        seed: seed of weights, data and run.
        device: `cpu` or `cuda`.
        precision: see `Settings`.
        tuned: `dropout` for the dropout rates of the network; `decay` for a weight decay, with constant dropout rates.
        graph: see `Settings`.
        channels_last: see `Settings`.
    """

    def __init__(
        self,
        net: str,
        method: MethodName,
        response_fraction: float,
        batch: int,
        seed: int = 0,
        device: str = "cpu",
        precision: PrecisionName = "fp32",
        tuned: str = "dropout",
        graph: GraphName = "off",
        channels_last: bool = False,
    ) -> None:
        torch.manual_seed(seed)
        of = NETS[net]
        model = of.make()
        if tuned == "decay":
            constant_dropout(model)
            space = rd.HyperSpace(decay=rd.Positive(1e-4))
        else:
            layers = {m.names[0]: m for m in model.modules() if isinstance(m, rd.Regularizer)}
            space = rd.HyperSpace(**{name: _strength(layer) for name, layer in layers.items()})
        data = of.data(batch)
        penalty = [rd.L2("decay")] if tuned == "decay" else []
        task = rd.Task(space=space, model=model, loss=F.cross_entropy, train=data, valid=data, penalty=penalty)
        self.tuner = rd.SelfTuner(
            task,
            method,
            preset="paper",
            batch_size=batch,
            response_fraction=response_fraction,
            device=device,
            seed=seed,
            precision=precision,
            train_interval=TRAIN_INTERVAL,
            graph=graph,
            channels_last=channels_last,
        )
        self.data = tuple(t.to(self.tuner.device) for t in data)

    def __call__(self) -> None:
        """Run five train steps and, if the method tunes, one hyper step."""
        tuner = self.tuner
        with tuner.arithmetic():
            tuner.model.train()
            for _ in range(TRAIN_INTERVAL):
                tuner.algorithm.train_step(*self.data)
            if tuner.method.tunes:
                tuner.model.eval()
                for _ in range(VALID_INTERVAL):
                    tuner.algorithm.hyper_step(*self.data)

    def peak(self) -> int:
        """Peak GPU memory of a cycle in bytes; 0 on a CPU."""
        device = self.tuner.device
        if device.type != "cuda":
            self()
            return 0
        self()
        torch.cuda.reset_peak_memory_stats(device)
        self()
        return torch.cuda.max_memory_allocated(device)

    def flops(self) -> int:
        """Matmul and convolution FLOPs of a cycle."""
        # The counter does not see inside PyTorch's fused recurrent and attention kernels.
        with unfused(), FlopCounterMode(display=False) as counter:
            self()
        flops: int = counter.get_total_flops()
        return flops

    def saved_bytes(self) -> int:
        """Bytes kept for backward, without parameters, in the pass of a cycle that keeps most."""
        tuner = self.tuner
        parameters = [*tuner.model.parameters(), *tuner.model.buffers()]
        parameters += [] if tuner.response is None else list(tuner.response.parameters())
        own = {p.untyped_storage().data_ptr() for p in parameters}
        alive: dict[int, int] = {}
        largest = 0

        class Saved:
            """A saved tensor, which is counted while autograd holds it."""

            def __init__(self, tensor: Tensor) -> None:
                self.tensor, self.key = tensor, tensor.untyped_storage().data_ptr()
                alive[self.key] = alive.get(self.key, 0) + 1

            def __del__(self) -> None:
                alive[self.key] -= 1
                if not alive[self.key]:
                    del alive[self.key]

        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Any:
            nonlocal largest
            storage = tensor.untyped_storage()
            if storage.data_ptr() in own:
                return tensor
            saved = Saved(tensor)
            sizes[saved.key] = storage.nbytes()
            largest = max(largest, sum(sizes[key] for key in alive))
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda s: s.tensor if isinstance(s, Saved) else s):
            self()
        return largest


def measure(
    net: str,
    method: MethodName,
    response_fraction: float,
    pairs: int | None = None,
    *,
    batch: int | None = None,
    device: str = "cpu",
    precision: PrecisionName = "fp32",
    graph: GraphName = "off",
    channels_last: bool = False,
) -> dict[str, Any]:
    """Measure a method against plain training on one network, and return the row.

    Args:
        net: key of `NETS`.
        method: name of a method.
        response_fraction: share of each minibatch that trains Θ; methods that train Θ and w₀ together use all of it.
        pairs: number of timed pairs of cycles; None for the default of the network and the device.
        batch: examples in a minibatch.
        device: `cpu` or `cuda`.
        precision: see `Settings`.
        graph: see `Settings`; FLOPs and memory are counted on eager steps.
        channels_last: see `Settings`.
    """
    batch = batch or NETS[net].batch
    of = get_method(method)
    if not (of.responds and of.split):
        response_fraction = 1.0
    what = TUNED[of.tunes and not of.responds]
    options: dict[str, Any] = {
        "batch": batch,
        "device": device,
        "precision": precision,
        "tuned": what,
        "channels_last": channels_last,
    }

    def ready(method: MethodName, fraction: float) -> tuple[Cycle, int]:
        held = torch.cuda.memory_allocated() if device == "cuda" else 0
        cycle = Cycle(net, method, fraction, **options)
        return cycle, cycle.peak() - held

    if device == "cuda":
        # Libraries allocate workspaces in their first call. Without this cycle, plain training alone would count them.
        Cycle(net, method, response_fraction, **options)()
    plain, least = ready("fixed", 1.0)
    tuned, most = ready(method, response_fraction)
    flops = tuned.flops() / plain.flops()
    memory = tuned.saved_bytes() / plain.saved_bytes()
    if graph != "off":
        plain = Cycle(net, "fixed", 1.0, graph=graph, **options)
        tuned = Cycle(net, method, response_fraction, graph=graph, **options)
        for cycle in (plain, tuned):
            for _ in range(EAGER + 1):  # after these the hyper step is captured too
                cycle()
    cpu, wall, taken, plain_taken = [], [], [], []
    for _ in range(pairs or (NETS[net].pairs if device == "cpu" else GPU_PAIRS)):
        seconds = []
        for cycle in (plain, tuned):
            before = time.process_time(), time.perf_counter()
            cycle()
            wait_for(cycle.tuner.device)
            seconds.append((time.process_time() - before[0], time.perf_counter() - before[1]))
        cpu.append(seconds[1][0] / seconds[0][0])
        wall.append(seconds[1][1] / seconds[0][1])
        plain_taken.append(seconds[0][1])
        taken.append(seconds[1][1])
    return {
        "net": net,
        "method": method,
        "response_fraction": response_fraction,
        "batch": batch,
        "device": device,
        "hardware": hardware(tuned.tuner.device),
        "tuned": what,
        "precision": precision,
        "graph": graph,
        "captured": isinstance(tuned.tuner.algorithm, GraphedSteps) and tuned.tuner.algorithm.captured,
        "channels_last": channels_last,
        "threads": torch.get_num_threads(),
        "flop_ratio": round(flops, 4),
        "cpu_time_ratio": round(statistics.median(cpu), 3),
        "wall_time_ratio": round(statistics.median(wall), 3),
        "saved_memory_ratio": round(memory, 3),
        "images_per_second": round(TRAIN_INTERVAL * batch / statistics.median(taken)),
        "plain_images_per_second": round(TRAIN_INTERVAL * batch / statistics.median(plain_taken)),
        # Measured on eager steps, because a graph holds memory of a separate pool for as long as it exists.
        "peak_memory_ratio": round(most / least, 3) if device == "cuda" else None,
        "peak_memory_bytes": most if device == "cuda" else None,
        "plain_peak_memory_bytes": least if device == "cuda" else None,
        **versions(),
    }


@contextmanager
def unfused() -> Iterator[None]:
    """Context without PyTorch's fused recurrent and attention kernels."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32")  # of the switch itself, on machines without an Intel GPU
        with (
            torch.backends.mkldnn.flags(enabled=False),
            torch.backends.cudnn.flags(enabled=False),
            sdpa_kernel(SDPBackend.MATH),
        ):
            yield


def wait_for(device: torch.device) -> None:
    """Wait until a device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print one row per network and method, and write all rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nets", default="mlp,cnn,resnet18", help=f"comma-separated, from {', '.join(NETS)}")
    parser.add_argument("--methods", default="stn,centered-stn,delta-stn")
    parser.add_argument("--response-fraction", type=number(above=0, most=1), default=1.0)
    parser.add_argument("--threads", type=whole(), default=1)
    parser.add_argument("--batch", type=whole(), help="examples in a minibatch (default: 128; 32 for large networks)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=get_args(PrecisionName))
    parser.add_argument(
        "--channels-last",
        action="store_true",
        help="use channels-last memory order, for the method and for plain training",
    )
    parser.add_argument(
        "--graph",
        default="off",
        choices=get_args(GraphName),
        help="capture and replay steps, of the method and of plain training",
    )
    parser.add_argument(
        "--pairs", type=whole(), help="timed pairs of cycles (default: 10, 5 or 2, by network; 50 on a GPU)"
    )
    parser.add_argument("--json", type=Path, help="file for the record")
    options = parser.parse_args(arguments)
    methods = options.methods.split(",")
    try:
        unknown = [net for net in options.nets.split(",") if net not in NETS]
        if unknown:
            raise ValueError(f"`--nets` must be names from {', '.join(NETS)}, got {unknown[0]!r}")
        for method in methods:
            get_method(method)
        if options.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("`--device cuda` needs a GPU, got none")
        if options.graph != "off":
            for method in ("fixed", *methods):
                Settings(method=method, graph=options.graph).captures(torch.device(options.device))
    except ValueError as error:
        parser.error(str(error))
    prepare(parser, options.json)
    torch.set_num_threads(options.threads)
    quiet()
    rows: list[dict[str, Any]] = []
    for net in options.nets.split(","):
        for method in methods:
            row = measure(
                net,
                method,
                options.response_fraction,
                options.pairs,
                batch=options.batch,
                device=options.device,
                precision=options.precision,
                graph=options.graph,
                channels_last=options.channels_last,
            )
            rows.append(row)
            print("  ".join(f"{k} {v}" for k, v in rows[-1].items() if k not in versions()), flush=True)
            if options.json:
                record.write(options.json, rows)


if __name__ == "__main__":
    main()
