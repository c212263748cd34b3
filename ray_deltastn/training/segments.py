"""Segments of a corpus: parallel streams of tokens, cut into minibatches, with a state that sequences carry.

| symbol | code         | shape                 | meaning                                                    |
|--------|--------------|-----------------------|------------------------------------------------------------|
| B      | `batch_size` |                       | parallel streams of a split                                |
| T      | `length`     |                       | tokens of each stream in a minibatch                       |
|        | `tokens`     | (n,)                  | the split; the last n mod B tokens are not used            |
|        | `state`      | leaves (…)            | what a sequence carries into its first segment             |
| x, y   |              | (B, T)                | tokens n·T … of each stream, and the tokens one further    |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ray_deltastn.response.trees import described, mapped, tensors
from ray_deltastn.training.misfits import first_line
from ray_deltastn.training.streams import Batch, Stream


class Segments:
    """A split of a corpus as parallel streams of tokens, for `Task(train=…, valid=…, test=…)`.

    The tokens are cut into `batch_size` streams of equal length; the rest at the end is dropped. Minibatch n holds the
    tokens x (B, T) at the positions n·T … of each stream, and the tokens y (B, T) one position further. The last
    minibatch of a pass is shorter if the tokens ask for it: it is kept, because its tokens are as good as all others,
    and in the loss of a split each token has the same weight. Passes are in the order of the corpus, never shuffled.
    The `batch_size` of a run does not apply.

    With a `state` the inputs are the pair (x, state): the model is called as `model(x, state)` and returns `(output,
    state after the segment)`. Losses, metrics and accuracy get the output only. Each leaf of the state is batch-first,
    (B, …). For `nn.LSTM`, whose states are (layers, B, units), the model transposes it:
    `h, c = (s.transpose(0, 1).contiguous() for s in state)`.

    The state at the beginning of a segment is the one that an unperturbed pass left after the segment before, without a
    gradient through it (truncated backpropagation). The passes of training and of hyper steps have their own states.
    Evaluations begin at the first state. Several workers share the streams, and each carries the state of its own.

    Args:
        tokens: the split, (n,), whole numbers from 0.
        batch_size: streams B. The splits of a task may have different ones.
        length: tokens T of each stream in a minibatch.
        state: what one sequence carries into its first segment, a tensor or nested tensors without batch axis, such as
            `(torch.zeros(2, 200), torch.zeros(2, 200))` for two LSTM layers of 200 units. None carries nothing.

    Raises:
        TypeError: if `tokens` is not a tensor of whole numbers, or `state` has a leaf that is not a tensor.
        ValueError: if the tokens are not one row, are negative, or too few for one segment with its targets, or a state
            has no tensor.

    Examples:
        >>> train = rd.Segments(torch.arange(101), batch_size=2, length=20)
        >>> len(train)
        3
    """

    def __init__(self, tokens: Tensor, batch_size: int, length: int, state: Any = None) -> None:
        if not isinstance(tokens, Tensor):
            raise TypeError(f"`tokens` must be a tensor (n,), got {described(tokens)}")
        if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            raise TypeError(f"`tokens` must be whole numbers, got {tokens.dtype}")
        for name, value in (("batch_size", batch_size), ("length", length)):
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`{name}` must be a whole number from 1, got {value!r}")
        if tokens.dim() != 1:
            raise ValueError(f"`tokens` must have one axis, got shape {tuple(tokens.shape)}")
        if len(tokens) // batch_size <= length:
            raise ValueError(
                f"`len(tokens) // batch_size > length` must hold, for a segment with its targets in each stream, got "
                f"{len(tokens):,} tokens in {batch_size} streams for `length` {length}"
            )
        if state is not None:
            wrong = [leaf for leaf in tree_leaves(state) if not isinstance(leaf, Tensor)]
            if wrong:
                raise TypeError(f"`state` must be a tensor or nested tensors, got {described(wrong[0])} in it")
            if not tensors(state):
                raise ValueError("`state` must hold a tensor, got none; give None to carry nothing")
        self.tokens = tokens.long()
        self.batch_size, self.length = int(batch_size), int(length)
        self.state = None if state is None else mapped(torch.Tensor.detach, state)
        #: Tokens in a stream.
        self.steps = len(tokens) // batch_size
        smallest, largest = (int(number) for number in self.tokens.aminmax())
        if smallest < 0:
            raise ValueError(f"`tokens >= 0` must hold, got {smallest}")
        #: The largest token.
        self.largest = largest

    def __len__(self) -> int:
        """Minibatches in a pass."""
        return -(-(self.steps - 1) // self.length)

    def __repr__(self) -> str:
        carried = (
            "" if self.state is None else f", state of {', '.join(str(tuple(t.shape)) for t in tensors(self.state))}"
        )
        return f"Segments({len(self.tokens):,} tokens, batch_size={self.batch_size}, length={self.length}{carried})"

    def and_then(self, other: Segments) -> Segments:
        """The tokens of both, as streams, segments and state of this one."""
        return Segments(torch.cat([self.tokens, other.tokens]), self.batch_size, self.length, self.state)


class SegmentStream(Stream):
    """Minibatches of `Segments`, in order. The leaves of their state are the same tensors in each minibatch.

    Whoever takes a minibatch writes the state that it leaves into them, see `Objective.carry`.

    Args:
        segments: the split.
        name: name of the split, for errors.
        device: the training device.
        own: the streams that are used; by default all.
    """

    def __init__(self, segments: Segments, name: str, device: torch.device, own: slice = slice(None)) -> None:
        super().__init__(name, device, 0)
        self.segments = segments
        self.continues = True
        self._own = own
        streams = segments.tokens[: segments.steps * segments.batch_size].view(segments.batch_size, -1)
        self._streams = streams[own].to(device)
        self.carries = segments.state is not None
        self._start = mapped(lambda t: t.to(device), segments.state) if self.carries else None
        self._state = self._first_state(len(self._streams))

    def __len__(self) -> int:
        return len(self.segments)

    @property
    def smallest_batch(self) -> int:
        """Number of streams."""
        return len(self._streams)

    def weight(self, x: Any, y: Any) -> int:
        """Number of tokens."""
        return int(y.numel())

    def next(self) -> Batch:
        """The next segment of each stream; the first one of a pass has the first state."""
        if self.position >= len(self):
            self.pass_number, self.position = self.pass_number + 1, 0
        if self.position == 0 and self.carries:
            self._fill(self._state, self._start)
        found = self._segment(self.position, self._state)
        self.position += 1
        return found

    def in_order(self) -> Iterator[Batch]:
        """One pass with a state that begins at the first one, and does not touch that of `next`."""
        state = self._first_state(len(self._streams))
        for position in range(len(self) if len(self._streams) else 0):
            yield self._segment(position, state)

    def first(self, count: int = 4) -> Batch:
        """Whole segments with the first state: of all streams, and of as many positions as `count` asks for."""
        length, streams = self.segments.length, self._streams
        cuts = [slice(n * length, (n + 1) * length) for n in range((self.segments.steps - 1) // length)]
        cuts = cuts[: -(-count // len(streams))]
        x, y = (torch.cat([of[:, cut] for cut in cuts])[:count] for of in (streams[:, :-1], streams[:, 1:]))
        return (x, self._first_state(len(x))) if self.carries else x, y

    def _segment(self, position: int, state: Any) -> Batch:
        start = position * self.segments.length
        stop = min(start + self.segments.length, self.segments.steps - 1)
        x, y = (self._streams[:, start + shift : stop + shift].contiguous() for shift in (0, 1))
        return (x, state) if self.carries else x, y

    def _first_state(self, count: int) -> Any:
        """The first state of `count` sequences, in new tensors."""
        return mapped(lambda t: t.expand(count, *t.shape).clone(), self._start) if self.carries else None

    def _fill(self, state: Any, values: Any) -> None:
        for mine, theirs in zip(tensors(state), tensors(values), strict=True):
            mine.copy_(theirs)

    def joined(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The state of all streams from those of each worker's."""
        parts = zip(*(state["state"] for state in states), strict=True)
        return {**states[0], "state": [torch.cat(part) for part in parts]}

    def state_dict(self) -> dict[str, Any]:
        """Position in the data, and the state that the sequences carry."""
        return {**super().state_dict(), "state": [t.clone() for t in tensors(self._state)]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position. If the state that belongs to it is not known, go on from the first state.

        Raises:
            ValueError: if the carried state is one of other streams or another network.
        """
        super().load_state_dict(state)
        self._state = self._first_state(len(self._streams))  # new tensors: a copy of this stream keeps the others
        if "state" not in state:
            return
        every = tensors(self._first_state(self.segments.batch_size))
        own, found = ([tuple(t.shape) for t in some] for some in (every, state["state"]))
        if own != found:
            raise ValueError(
                f"`state` must be one of the same streams of `{self.name}`, got carried tensors of {found}, here {own}"
            )
        self._fill(self._state, [t[self._own] for t in state["state"]])

    @contextmanager
    def explains(self, x: Any, y: Any) -> Iterator[None]:
        """Context of a step on a minibatch; an index error in it names the largest token.

        Raises:
            ValueError: instead of the step's error.
        """
        try:
            with super().explains(x, y):
                yield
        except IndexError as error:
            raise ValueError(
                f"`{self.name}` must hold tokens that the model and the loss know, got tokens up to "
                f"{self.segments.largest:,} and this error: {first_line(error)}"
            ) from error
