"""Ctrl-C and SIGTERM for the command line: the run is told to stop, cleans up, and ends."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from threading import Event, Thread
from types import FrameType
from typing import NoReturn, TypeVar

from dpo_pipeline.errors import Cancelled

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

    Raises:
        Stopped: A signal came before the function was done.
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
    """End the process now: no other thread is waited for, and what they wrote is removed."""
    try:
        publishing = sys.modules.get("dpo_pipeline.publishing")  # nothing is published without
        if publishing is not None:
            publishing.abandon_all()
    finally:
        os._exit(code)
