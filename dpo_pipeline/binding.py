"""Binds the contract to a dataset once, so that any part of it can be prepared and judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import polars as pl

from dpo_pipeline.arguments import checked_max_logp
from dpo_pipeline.columns import ALL_LOGPS, Needs
from dpo_pipeline.intake import canonical
from dpo_pipeline.rules import RuleSet, Schema, compile_rules, gate
from dpo_pipeline.token_rules import with_token_rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """The contract, bound to the columns of one dataset.

    Attributes:
        mapping: Canonical name to the input column it came from.
        rules: The rules, as expressions on prepared pairs.
        columns: The columns of prepared pairs.
        max_logp: Largest log-probability accepted, in nats.
        needs: Which columns the loss asks for.
    """

    mapping: Mapping[str, str]
    rules: RuleSet
    columns: pl.Schema
    max_logp: float
    needs: Needs
    _source: str
    _selection: tuple[pl.Expr, ...]
    _contract: Schema | None

    def prepare(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        """Return a part of the dataset under canonical names and types, reading no data."""
        frame = frame.select(self._selection)
        if self._contract is None:
            return frame
        # A user's schema may fill, drop or cast columns, so each part passes through it.
        return gate(
            frame,
            source=self._source,
            max_logp=self.max_logp,
            contract=self._contract,
            needs=self.needs,
        )


def bind(
    frame: pl.LazyFrame,
    *,
    source: str,
    max_logp: float,
    columns: Mapping[str, str] | None = None,
    contract: Schema | None = None,
    adds: Iterable[str] = (),
    replace: bool = False,
    needs: Needs = ALL_LOGPS,
) -> Binding:
    """Check columns and types and compile the rules, reading no data.

    Raises:
        UsageError: `max_logp` or `contract` is not what it must be.
        ColumnError: The columns or their types do not fit the contract.
        RefusedCheckError: A check of `contract` cannot run row by row.
    """
    max_logp = checked_max_logp(max_logp)
    ready = canonical(
        frame, source=source, columns=columns, adds=adds, replace=replace, needs=needs
    )
    gated = gate(
        frame.select(ready.selection),
        source=source,
        max_logp=max_logp,
        contract=contract,
        needs=needs,
    )
    return Binding(
        mapping=ready.mapping,
        rules=with_token_rules(
            compile_rules(gated, max_logp=max_logp, contract=contract, needs=needs),
            ready.summed,
            ready.mapping,
            max_logp=max_logp,
        ),
        columns=gated.collect_schema(),
        max_logp=max_logp,
        needs=needs,
        _source=source,
        _selection=ready.selection,
        _contract=contract,
    )
