"""What `dry_run` returns, and its projections: dictionary, JSON, text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.storage import Output
from dpo_pipeline.tables import aligned, as_json

_FILES_SHOWN: Final = 10
"""Input files that the text lists; the document has them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What would be read.

    Attributes:
        path: A file, or what a source that is not Parquet is called.
        rows: Rows, from the footer; None where only reading can tell.
        is_reference: Whether it is the reference's.
    """

    path: str
    rows: int | None
    is_reference: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a call would do.

    Attributes:
        function: The function that would be called.
        source: What reports call the pairs.
        inputs: What would be read.
        rows: Pairs, from the footers; None where only reading can tell.
        columns: Role to the input column that was found for it.
        max_logp: Largest log-probability accepted, in nats; None where values are not checked.
        objectives: What would be computed.
        by: Columns of the subsets.
        statistics: Whether statistics would be made.
        batch_size: Rows of a batch, if batches are of rows.
        batch_by: The column of the batches, if they are by value.
        n_batches: How many batches of rows there would be, where that is known.
        carried: Input columns that scored pairs would have; None where none are written.
        outputs: What would be written.
    """

    function: str
    source: str
    inputs: tuple[Input, ...]
    rows: int | None
    columns: Mapping[str, str]
    max_logp: float | None = None
    objectives: tuple[CheckedObjective, ...] = ()
    by: tuple[str, ...] = ()
    statistics: bool = False
    batch_size: int | None = None
    batch_by: str | None = None
    n_batches: int | None = None
    carried: tuple[str, ...] | None = None
    outputs: tuple[Output, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "dry_run": self.function,
            "source": self.source,
            "rows": self.rows,
            "inputs": [
                {"path": each.path, "rows": each.rows, "is_reference": each.is_reference}
                for each in self.inputs
            ],
            "columns": dict(self.columns),
            "max_logp": self.max_logp,
            "objectives": [objective.to_dict() for objective in self.objectives],
            "by": list(self.by),
            "statistics": self.statistics,
            "batch_size": self.batch_size,
            "batch_by": self.batch_by,
            "n_batches": self.n_batches,
            "carried": None if self.carried is None else list(self.carried),
            "outputs": [
                {"path": each.path, "files": each.files, "replaces": each.replaces}
                for each in self.outputs
            ],
        }

    def to_json(self) -> str:
        """Return the same as JSON."""
        return as_json(self.to_dict())

    def __str__(self) -> str:
        """Return it as aligned text."""
        rows = "rows unknown until read" if self.rows is None else f"{self.rows:,} rows"
        head = f"{self.source}: {rows}; a dry run, so nothing was computed or written"
        sections = [
            list(self._input_lines()),
            aligned(("role", "column"), list(self.columns.items())),
            list(self._figure_lines()),
            list(self._output_lines()),
        ]
        return "\n\n".join([head, *("\n".join(lines) for lines in sections if lines)])

    def _input_lines(self) -> Iterator[str]:
        if len(self.inputs) > 1:
            shown = self.inputs[:_FILES_SHOWN]
            rows = [
                (f"{each.path}{' (reference)' if each.is_reference else ''}", each.rows)
                for each in shown
            ]
            yield from aligned(("input", "rows"), rows)
            if len(self.inputs) > len(shown):
                yield f"... and {len(self.inputs) - len(shown):,} more"

    def _figure_lines(self) -> Iterator[str]:
        for each in self.objectives:
            system = "" if each.dialect is None else f", dialect {each.dialect}"
            yield f"loss: {each}, beta {each.beta:g}{system}"
            for term in each.to_dict()["terms"]:
                names = [name for name in term if name not in ("loss", "weight")]
                given = ", ".join(f"{name} {_words(term[name])}" for name in names)
                yield f"  {term['loss']}: {given}"
        if self.max_logp is not None:
            yield f"log-probs accepted: at most {self.max_logp:g}"
        if self.by:
            yield f"subsets: by {', '.join(self.by)}"
        if self.statistics:
            yield "statistics: yes"
        if self.batch_size is not None:
            count = "" if self.n_batches is None else f"{self.n_batches:,} "
            yield f"batches: {count}of {self.batch_size:,} rows"
        if self.batch_by is not None:
            yield f"batches: by the value of {self.batch_by}"
        if self.carried is not None:
            yield f"columns carried along: {', '.join(self.carried) or 'none'}"

    def _output_lines(self) -> Iterator[str]:
        for each in self.outputs:
            what = "" if each.files is None else f", {each.files:,} files"
            yield f"would {'replace' if each.replaces else 'write'} {each.path}{what}"


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
