"""The list of losses as text and JSON, made from `losses.catalogue`."""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan
from typing import TYPE_CHECKING, Any

from dpo_pipeline.errors import UsageError
from dpo_pipeline.losses import EVERY_LOSS, F_DIVERGENCES, Loss, no_such_loss
from dpo_pipeline.published import LEGEND, needs_of
from dpo_pipeline.tables import Column, Part, Printable, Table

if TYPE_CHECKING:
    import polars as pl


class LossList(Printable):
    """The losses, or all about one."""

    def __init__(self, name: str | None = None) -> None:
        self._found = None if name is None else _found(name)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        if self._found is not None:
            return as_dict(self._found)
        return {"losses": [as_dict(loss) for loss in EVERY_LOSS.values()]}

    def to_frame(self) -> pl.DataFrame:
        """Return one row a loss."""
        import polars as pl

        losses = EVERY_LOSS.values() if self._found is None else (self._found,)
        rows = [(loss.name, needs_of(loss), loss.formula, loss.source) for loss in losses]
        return pl.DataFrame(rows, schema=["loss", "needs", "formula", "source"], orient="row")

    def to_parts(self) -> Iterator[Part]:
        """Yield the list, or the facts of one loss."""
        if self._found is None:
            rows = [(loss.name, needs_of(loss), loss.formula) for loss in EVERY_LOSS.values()]
            columns = (Column("loss"), Column("needs", wraps=True), Column("formula", wraps=True))
            yield Table(columns=columns, rows=rows, note=LEGEND, most=None)
            return
        facts = as_dict(self._found)
        lines: list[tuple[str, Any]] = [
            (key, str(value)) for key, value in facts.items() if not isinstance(value, (dict, list))
        ]
        lines += [(p.name, f"{p.shown}: {p.meaning}, {p.range}") for p in self._found.parameters]
        lines += list(facts["elsewhere"].items())
        yield Table(columns=(Column(""), Column("", wraps=True)), rows=lines, most=None)


def as_dict(loss: Loss) -> dict[str, Any]:
    """Return one row with all that it says."""
    return {
        "name": loss.name,
        "formula": loss.formula,
        "needs": needs_of(loss),
        "source": loss.source,
        "parameters": [
            {
                "name": p.name,
                "default": None if isnan(p.default) else p.default,
                "range": p.range,
                "meaning": p.meaning,
            }
            for p in loss.parameters
        ],
        "reference_free": loss.reference,
        "per_token": loss.by_length,
        "f_divergence": ", ".join(F_DIVERGENCES) if loss.f_divergence else "reverse_kl",
        "elsewhere": dict(loss.peers),
    }


def _found(name: str) -> Loss:
    if name not in EVERY_LOSS:
        raise UsageError(f"there is no loss {no_such_loss(name)}")
    return EVERY_LOSS[name]
