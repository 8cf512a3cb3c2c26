"""What commands share: running with progress, and stopping on a signal."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from threading import Event, Lock, Thread
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn, Self, TextIO, TypeVar

from dpo_pipeline.errors import Cancelled, DataWarning

if TYPE_CHECKING:
    from dpo_pipeline.engine import Progress, ProgressCallback

T = TypeVar("T")

_LOOK_EVERY = 0.05  # seconds


class Stopped(Cancelled):
    """Raised when a signal stopped the run.

    Attributes:
        signum: The signal's number.
    """

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}; nothing was published")


def run_stoppable(function: Callable[[Event], T]) -> T:
    """Run `function` with an event that SIGINT and SIGTERM set; a second signal exits at once.

    A signal handler of our own would keep Polars from seeing the signal while it computes in
    the main thread, so the function runs in another one and this one listens.
    """
    cancel = Event()
    received: list[int] = []
    outcome: list[T] = []
    failure: list[BaseException] = []

    def handle(signum: int, _frame: FrameType | None) -> None:
        if received:
            _leave(128 + signum)
        received.append(signum)
        cancel.set()

    def work() -> None:
        try:
            outcome.append(function(cancel))
        except BaseException as error:  # noqa: BLE001  raised again below, in the main thread
            failure.append(error)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        thread = Thread(target=work, name="dpo-pipeline", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_LOOK_EVERY)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if failure:
        if received and isinstance(failure[0], Cancelled):
            raise Stopped(received[0]) from None
        raise failure[0]
    return outcome[0]


def _leave(code: int) -> NoReturn:
    """End the process without waiting for other threads, and remove what they wrote."""
    try:
        # If this was never imported, nothing was written.
        publishing = sys.modules.get("dpo_pipeline.storage.publication")
        if publishing is not None:
            publishing.abandon_all()
    finally:
        os._exit(code)


_QUIET_SECONDS: Final = 2.0
"""A run that ends sooner shows nothing."""

_EVERY: Final = 0.2  # seconds


class ProgressLine:
    """Shows rows, rate and an estimated time to go, on a terminal only, in a line that goes away.

    Costs nothing between two updates.
    """

    def __init__(self, stream: TextIO, *, enabled: bool) -> None:
        self.enabled = enabled and stream.isatty()
        self._stream = stream
        self._lock = Lock()
        self._phase: str | None = None
        self._began = self._shown = time.monotonic()
        self._phase_began = self._began
        self._width = 0
        self._lost = False

    def __enter__(self) -> Self:
        return self

    def show(self, progress: Progress) -> None:
        """Show the progress, unless something was shown a moment ago."""
        now = time.monotonic()
        with self._lock:
            if progress.phase != self._phase:
                self._phase, self._phase_began = progress.phase, now
            # Work after the last row takes time too, so the last row is always shown.
            last = progress.total is not None and progress.rows >= progress.total
            if now - self._began < _QUIET_SECONDS or (now - self._shown < _EVERY and not last):
                return
            self._shown = now
            # A line as long as the terminal is wide would leave its first part behind.
            most = shutil.get_terminal_size().columns - 1
            text = _text(progress, now - self._phase_began)[:most]
            self._write("\r" + text.ljust(self._width))
            self._width = len(text)

    def _write(self, text: str) -> None:
        if not self._lost:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):  # nobody reads stderr, which is no reason to fail
                self._lost = True

    def __exit__(self, *_error: object) -> None:
        if self._width:
            self._write("\r" + " " * self._width + "\r")


def _text(progress: Progress, seconds: float) -> str:
    rate = progress.rows / seconds if seconds > 0 else 0.0
    parts = [f"{progress.phase}: {progress.rows:,}"]
    if progress.total:
        parts[0] += f" of {progress.total:,} pairs"
        if progress.rows >= progress.total:
            parts.append("computed; writing ..." if progress.phase == "writing" else "done")
        elif rate and seconds > _QUIET_SECONDS:
            parts.append(f"about {(progress.total - progress.rows) / rate:.0f} s to go (estimate)")
    parts.insert(1, f"{rate:,.0f}/s")
    if progress.tokens and seconds > 0:
        parts.insert(1, f"{progress.tokens / seconds:,.0f} tokens/s")
    return ", ".join(parts)


def run(call: Callable[[Event, ProgressCallback | None], T], *, quiet: bool) -> T:
    """Run a call with an event that stops it and a callback that shows progress on stderr."""
    with warnings.catch_warnings():
        # The data's warnings are in the result, to be printed once; numeric ones are not ours.
        warnings.simplefilter("ignore", DataWarning)
        with ProgressLine(sys.stderr, enabled=not quiet) as line:
            return run_stoppable(lambda cancel: call(cancel, line.show if line.enabled else None))
