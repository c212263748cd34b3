"""SIGTERM, which batch systems and containers send, stops a run in the same way as Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: Seconds after SIGTERM in which a command can stop in an orderly way. Docker kills a container after ten.
LATE = 8.0


class Terminated(KeyboardInterrupt):
    """The process has received SIGTERM."""


class _ActsAsInterrupt:
    """Handler of SIGTERM: the first one does what Ctrl-C would do at this moment; further ones are ignored."""

    def __init__(self, when_late: Callable[[], None] | None) -> None:
        self.received = False
        self.when_late = when_late

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            return
        self.received = True
        if self.when_late is not None:
            # A batch system may have stopped Ray's processes too. Then Tune waits for them for a minute.
            timer = threading.Timer(LATE, self.when_late)
            timer.daemon = True
            timer.start()
        # While trials run, this is Tune's handler: it saves the state of the experiment and then ends it.
        interrupt: Any = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # a shell starts its background jobs without Ctrl-C
            raise Terminated
        interrupt(signal.SIGINT, frame)


@contextmanager
def terminable(when_late: Callable[[], None] | None = None) -> Iterator[Callable[[], None]]:
    """Context in which SIGTERM acts as Ctrl-C, and `Terminated` is raised at the end if it has come.

    Contexts may be nested. In threads other than the main one nothing changes, because Python handles signals there.

    Args:
        when_late: called in another thread if the process still runs `LATE` seconds after SIGTERM; it must end the
            process. Only the outermost context decides.

    Yields:
        A function that sets the handler again. Ray replaces it when it starts.

    Raises:
        Terminated: if SIGTERM has come.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before: Any = signal.getsignal(signal.SIGTERM)
    handler = before if isinstance(before, _ActsAsInterrupt) else _ActsAsInterrupt(when_late)

    def arm() -> None:
        signal.signal(signal.SIGTERM, handler)

    arm()
    try:
        yield arm
    except (KeyboardInterrupt, SystemExit):  # while Ray starts, its own handler raises SystemExit
        if handler.received:
            raise Terminated from None
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
    if handler.received:
        raise Terminated
