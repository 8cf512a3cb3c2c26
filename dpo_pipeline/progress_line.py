"""Progress on stderr: one line that is rewritten on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from threading import Lock
from types import TracebackType
from typing import Final, Self, TextIO

from dpo_pipeline.running import Progress

_QUIET_SECONDS: Final = 2.0
"""A run that ends sooner shows nothing."""

_EVERY_TERMINAL: Final = 0.2  # seconds
_EVERY_FILE: Final = 10.0  # seconds


class ProgressLine:
    """Shows rows, rate and an estimated time to go; costs nothing between two updates."""

    def __init__(self, stream: TextIO, *, enabled: bool) -> None:
        self.enabled = enabled
        self._stream = stream
        self._terminal = stream.isatty()
        self._lock = Lock()
        self._phase: str | None = None
        self._began = self._shown = time.monotonic()
        self._phase_began = self._began
        self._width = 0
        self._lost = False

    def __enter__(self) -> Self:
        return self

    def show(self, progress: Progress) -> None:
        """Show it, unless something was shown a moment ago."""
        now = time.monotonic()
        with self._lock:
            if progress.phase != self._phase:
                self._phase, self._phase_began = progress.phase, now
            every = _EVERY_TERMINAL if self._terminal else _EVERY_FILE
            # What comes after the last row takes its time as well, so that one is always told.
            last = progress.total is not None and progress.rows >= progress.total
            if now - self._began < _QUIET_SECONDS or (now - self._shown < every and not last):
                return
            self._shown = now
            text = _text(progress, now - self._phase_began)
            self._write("\r" + text.ljust(self._width) if self._terminal else text + "\n")
            self._width = len(text)

    def _write(self, text: str) -> None:
        if not self._lost:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):  # nobody reads it, which is no reason to fail
                self._lost = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._terminal and self._width:
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
    return ", ".join(parts)
