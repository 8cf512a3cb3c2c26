"""How a run tells how far it is, and how it is told to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dpo_pipeline.errors import Cancelled

if TYPE_CHECKING:
    import polars as pl  # the command line imports this file for its help

Phase = Literal["joining", "evaluating", "listing", "writing", "scoring"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a phase of a run is.

    Attributes:
        phase: What is being done.
        rows: Rows done in this phase.
        total: Rows of this phase; None where only the end tells.
        tokens: Tokens that models read in this phase.
    """

    phase: Phase
    rows: int
    total: int | None
    tokens: int = 0


ProgressCallback: TypeAlias = Callable[[Progress], None]


@dataclass(slots=True, kw_only=True)
class Watch:
    """Passes progress on, and stops the run once the cancel event is set."""

    callback: ProgressCallback | None = None
    cancel: Event | None = None
    _rows: dict[Phase, int] = field(default_factory=dict)
    _tokens: int = 0
    _lock: Lock = field(default_factory=Lock)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without callback and event, which belong to the waiting process."""
        return Watch, ()

    def check(self) -> None:
        """Raise if the run is to stop."""
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled("stopped; nothing was published")

    def step(self, phase: Phase, rows: int, total: int | None, *, tokens: int = 0) -> None:
        """Tell that `rows` more rows are done, and that models read `tokens` more tokens."""
        self.check()
        with self._lock:  # the engine's threads come here with their morsels
            done = self._rows[phase] = self._rows.get(phase, 0) + rows
            self._tokens += tokens
        if self.callback is not None:
            self.callback(Progress(phase=phase, rows=done, total=total, tokens=self._tokens))

    def restart(self, phase: Phase) -> None:
        """Count a phase from its start, because it is done in another way."""
        with self._lock:
            self._rows.pop(phase, None)

    def on_rows(self, frame: pl.LazyFrame, phase: Phase, total: int | None) -> pl.LazyFrame:
        """Return a plan that calls `step` with every morsel; the rows are unchanged."""
        if self.callback is None and self.cancel is None:
            return frame

        def pass_on(rows: pl.DataFrame) -> pl.DataFrame:
            self.step(phase, rows.height, total)
            return rows

        return frame.map_batches(pass_on, streamable=True)
