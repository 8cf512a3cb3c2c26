"""pandera checks become named Boolean expressions of one row, to run inside the computing plan.

A check that needs more than its row is refused by name, never skipped. The rows that break
the rules are those that pandera's own validation reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, cast

import pandera.polars as pa
import polars as pl
from pandera.config import ValidationDepth, config_context
from pandera.errors import SchemaError, SchemaErrors

from dpo_pipeline.columns import ALL_LOGPS, ROLES, Needs
from dpo_pipeline.contract.model import OUR_TITLE, row_model
from dpo_pipeline.contract.rules import WANTED, WHOLE_FRAME, Rule, Schema, type_name
from dpo_pipeline.defaults import MAX_LOGP
from dpo_pipeline.errors import ColumnError, RefusedCheckError, UsageError


def check_schema(
    frame: pl.LazyFrame,
    *,
    source: str,
    max_logp: float,
    contract: Schema | None = None,
    needs: Needs = ALL_LOGPS,
) -> pl.LazyFrame:
    """Check the names and types of pairs under canonical names, reading no data.

    pandera itself checks them. The frame comes back as pandera hands it back: `contract` may add,
    drop or fill columns.
    """
    for schema in _schemas(max_logp, contract, needs):
        before = frame.collect_schema()
        # The depth is a context variable that new threads do not inherit, and an environment
        # variable can switch pandera off: both are pinned where validation happens.
        with config_context(validation_enabled=True, validation_depth=ValidationDepth.SCHEMA_ONLY):
            try:
                frame = schema.validate(frame, lazy=True)
            except (SchemaErrors, SchemaError) as error:
                raise ColumnError(source, tuple(_problems(error, frame))) from None
        for name, dtype in frame.collect_schema().items():
            if before.get(name, dtype) != dtype:
                raise RefusedCheckError(
                    "coerce", name, f"a cell of type {before[name]} that is no {dtype} has no row"
                )
    gone = [name for name in needs.logps if name not in frame.collect_schema()]
    if gone:
        raise ColumnError(source, tuple(f"{name}: the contract filters it away" for name in gone))
    return frame


def compiled(contract: Schema, frame: pl.LazyFrame, needs: Needs) -> list[Rule]:
    """Turn the checks of a user's contract into rules on the columns of `frame`, or refuse one."""
    columns = frame.collect_schema()
    return [
        rule
        for schema in _schemas(MAX_LOGP, contract, needs)[1:]
        for rule in _compiled(schema, frame, columns)
    ]


def _schemas(max_logp: float, contract: Schema | None, needs: Needs) -> list[pa.DataFrameSchema]:
    schemas = [row_model(max_logp, needs).to_schema()]
    if isinstance(contract, type) and issubclass(contract, pa.DataFrameModel):
        try:
            schemas.append(contract.to_schema())
        except Exception as error:  # whatever a model's declaration raises, it is that model's
            raise UsageError(f"contract: pandera cannot build {contract!r}: {error}") from error
    elif isinstance(contract, pa.DataFrameSchema):
        schemas.append(contract)
    elif contract is not None:
        raise UsageError(
            "contract must be a pandera.polars DataFrameSchema or DataFrameModel, found "
            f"{contract!r}"
        )
    schemas = [copy(schema) for schema in schemas]
    for schema in schemas:
        # With drop_invalid_rows pandera keeps silent about missing columns and wrong types.
        schema.drop_invalid_rows = False
        # A model made from ours declares columns that this loss may not need.
        schema.columns = {
            name: copy(column)
            for name, column in schema.columns.items()
            if name not in ROLES
            or needs.have(ROLES[name])
            or not (column.checks and all(check.title == OUR_TITLE for check in column.checks))
        }
        for column in schema.columns.values():
            column.drop_invalid_rows = False
    return schemas


def _problems(error: SchemaErrors | SchemaError, frame: pl.LazyFrame) -> Iterator[str]:
    found = frame.collect_schema()
    for each in error.schema_errors if isinstance(error, SchemaErrors) else [error]:
        name = each.schema.name if isinstance(each.schema, pa.Column) else None
        if each.reason_code is not None and each.reason_code.name == "WRONG_DATATYPE":
            _, wanted = WANTED.get(name or "", (None, str(each.schema.dtype)))
            there = type_name(found.get(str(name)))
            yield f"{name}: must be {wanted}, found {there}; cast it before"
        elif each.reason_code is not None and each.reason_code.name == "COLUMN_NOT_IN_DATAFRAME":
            yield f"{each.failure_cases}: missing; the columns are {', '.join(found.names())}"
        else:
            # Only the first line: pandera puts rows of the data into some messages.
            yield f"{name or 'the columns'}: {str(each).splitlines()[0]}"


class _NotRowWiseError(TypeError):
    """Raised inside this module when a check needs more than one row."""


class _Recorder:
    """Stands in for the LazyFrame that a check gets; selecting from it gives the expressions."""

    def __init__(self, schema: pl.Schema) -> None:
        self._schema = schema

    def collect_schema(self) -> pl.Schema:
        return self._schema

    def select(self, *exprs: Any, **named: Any) -> _Selection:
        flat = [each for item in exprs for each in _flat(item)] + list(named.values())
        selected = [pl.col(each) if isinstance(each, str) else each for each in flat]
        for each in selected:
            if not isinstance(each, pl.Expr):
                raise _NotRowWiseError(f"it selects a {type(each).__name__}, not an expression")
        # Selecting from an empty frame of this schema binds names and types without data.
        made = (
            pl.LazyFrame(schema=self._schema)
            .select(each.name.suffix(str(i)) for i, each in enumerate(selected))
            .collect_schema()
        )
        if not made or any(dtype != pl.Boolean for dtype in made.values()):
            raise _NotRowWiseError(f"it yields {dict(made)} instead of Booleans")
        return _Selection(exprs=tuple(selected))

    def __getattr__(self, name: str) -> NoReturn:
        raise _NotRowWiseError(f"it uses LazyFrame.{name}, and only .select can be fused")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Selection:
    """What a check selected."""

    exprs: tuple[pl.Expr, ...]

    def __getattr__(self, name: str) -> NoReturn:
        raise _NotRowWiseError(f"it uses LazyFrame.{name} on what it selected")


def _flat(item: Any) -> Iterable[Any]:
    is_one = isinstance(item, (str, pl.Expr, pl.Series)) or not isinstance(item, Iterable)
    return [item] if is_one else item


def _is_row_wise(expr: pl.Expr) -> bool:
    # Expr.meta looks at the root only (`x < x.mean()` would pass), so check every node.
    waiting = [expr]
    try:
        while waiting:
            node = waiting.pop()
            if node.meta.is_literal():
                if pl.select(node).height != 1:  # a Series: a value for each row
                    return False
            elif not (node.meta.is_row_separable() and node.meta.is_length_preserving()):
                return False
            waiting += node.meta.pop()
        return not expr.meta.is_scalar()
    except pl.exceptions.PolarsError:  # Python functions and list.eval: nothing can be proven
        return False


def _called(check: pa.Check, recorder: _Recorder, column: str | None) -> object:
    backend: Any = check.get_backend(pl.LazyFrame())(check)
    function = backend.check_fn
    name = check.registry_name
    if name and pa.Check.is_builtin_check(name):
        # A schema copies its checks before their Polars versions are registered.
        function = partial(pa.Check.get_builtin_check_fn(name), **function.keywords)
    try:
        return function(pa.PolarsData(cast("pl.LazyFrame", recorder), column or WHOLE_FRAME))
    except _NotRowWiseError:
        raise
    except Exception as error:  # whatever a user's function raises, it is that check's fault
        text = (str(error) or "no message").splitlines()[0]
        raise _NotRowWiseError(f"it raises {type(error).__name__}: {text}") from error


def _expressions(check: pa.Check, column: str | None, columns: pl.Schema) -> list[pl.Expr]:
    if check.element_wise:
        raise _NotRowWiseError("element_wise=True runs Python on every value")
    if check.raise_warning:
        raise _NotRowWiseError("raise_warning=True lets every row pass")
    if check.groupby:
        raise _NotRowWiseError("groupby compares rows with each other")
    recorder = _Recorder(columns)
    out = _called(check, recorder, column)
    if not isinstance(out, _Selection):
        what = "the frame" if out is recorder else type(out).__name__
        raise _NotRowWiseError(f"it returns {what}, not what it selects from the frame")
    for expr in out.exprs:
        if expr.meta.has_multiple_outputs():
            raise _NotRowWiseError("one expression stands for several columns; name each")
        if not _is_row_wise(expr):
            raise _NotRowWiseError("it looks at other rows, or at Python")
    return list(out.exprs)


def _compiled(
    schema: pa.DataFrameSchema, frame: pl.LazyFrame, columns: pl.Schema
) -> Iterator[Rule]:
    explicit = {column.name for column in schema.columns.values() if not column.regex}
    for column in schema.columns.values():
        names: Sequence[str] = [column.name]
        if column.regex:
            matched = frame.select(pl.col(column.selector)).collect_schema().names()
            names = [name for name in matched if name not in explicit]
        for name in names:
            if name not in columns:
                continue
            if column.unique:
                raise RefusedCheckError("unique", name, "it compares rows with each other")
            if not column.nullable:
                keeps = pl.col(name).is_not_null()
                if columns[name] in (pl.Float32, pl.Float64):  # as pandera does
                    keeps = keeps & pl.col(name).is_not_nan().fill_null(value=True)
                yield Rule(column=name, check="not_nullable", requirement="not null", keeps=keeps)
            yield from _rules_of_checks(column.checks, name, columns)
    if schema.unique:
        raise RefusedCheckError("unique", None, "it compares rows with each other")
    yield from _rules_of_checks(schema.checks, None, columns)


def _rules_of_checks(
    checks: Sequence[pa.Check], column: str | None, columns: pl.Schema
) -> Iterator[Rule]:
    for check in checks:
        if check.title == OUR_TITLE:
            continue  # inherited from our own model, whose rules are there already
        name = str(check.name or check.error)
        try:
            exprs = _expressions(check, column, columns)
        except _NotRowWiseError as why:
            raise RefusedCheckError(name, column, str(why)) from None
        keeps = exprs[0] if len(exprs) == 1 else pl.all_horizontal(exprs)
        yield Rule(
            column=column,
            check=name,
            requirement=str(check.description or check.error or name),
            keeps=keeps.fill_null(value=bool(check.ignore_na)),
        )
