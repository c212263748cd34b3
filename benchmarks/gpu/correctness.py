"""All checks of correctness, in the order of their worth."""

from __future__ import annotations

from functools import partial

from benchmarks.gpu import gradients, memory, runs
from benchmarks.gpu.items import Item


def items(tiny: bool) -> list[Item]:
    """The checks.

    Args:
        tiny: whether they run on a CPU, where some captures are refused.
    """
    graph = runs.check_graph
    nets = ("cnn", "resnet18") if tiny else ("cnn", "resnet18", "transformer")
    adams = () if tiny else ("adam",)
    big = "fashion-cnn" if tiny else "cifar10-resnet18"
    return [
        *(Item(f"gradients: {name}", partial(gradients.check_gradients, name), 8) for name in gradients.MADE),
        Item("captured: mlp", partial(graph, "mlp", "delta-stn"), 10),
        Item("waits for nothing: cnn, eager", partial(memory.check_waiting, "fashion-cnn", "delta-stn", "off"), 5),
        Item("waits for nothing: cnn, captured", partial(memory.check_waiting, "fashion-cnn", "delta-stn", "on"), 5),
        *(Item(f"captured: {net}", partial(graph, net, "delta-stn"), 15, 150) for net in nets),
        *(Item(f"cycles: {name}", partial(gradients.check_cycles, name), 6) for name in gradients.MADE),
        Item("resume: mlp", partial(runs.check_resume, "mlp", "off"), 6),
        Item("resume: mlp, captured", partial(runs.check_resume, "mlp", "on"), 8),
        Item("resume: cnn, captured", partial(runs.check_resume, "cnn", "on"), 8),
        Item("a capture that breaks", runs.check_broken_capture, 8),
        Item("memory of ten runs", partial(memory.check_memory, False), 12),
        Item("memory of ten runs of one model", partial(memory.check_memory, True), 12),
        *(Item(f"bf16 and tf32: {net}", partial(runs.check_precision, net), 45, 150) for net in ("mlp", *nets)),
        *(Item(f"channels-last: {net}", partial(runs.check_channels_last, net), 6) for net in ("cnn", "resnet18")),
        Item("captured: cnn, paper", partial(graph, "cnn", "delta-stn", preset="paper"), 12),
        *(Item(f"captured: cnn, {name}", partial(graph, "cnn", "delta-stn", optimizer=name), 12) for name in adams),
        Item("captured: mlp, stn", partial(graph, "mlp", "stn"), 8),
        Item("captured: mlp, centered-stn", partial(graph, "mlp", "centered-stn"), 8),
        Item("captured: mlp, fixed", partial(graph, "mlp", "fixed"), 6),
        Item(f"waits for nothing: {big}", partial(memory.check_waiting, big, "delta-stn", "off"), 10),
        Item(f"waits for nothing: {big}, captured", partial(memory.check_waiting, big, "delta-stn", "on"), 12),
        Item("waits for nothing: transformer", partial(memory.check_waiting, "transformer", "delta-stn", "off"), 6),
        Item("a loader that pins memory", runs.check_loader, 12),
        *(Item(f"{method}", partial(runs.check_alternatives, method), 4) for method in ("ift", "unrolled")),
    ]
