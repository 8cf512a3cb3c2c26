"""One schema for the files of a dataset that do not all have the same, and what it leaves out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, TypeAlias

import polars as pl

from dpo_pipeline.columns import LOGP_ROLES, ROLES, resolve
from dpo_pipeline.errors import ColumnError

WIDENING: Final = pl.ScanCastOptions(
    integer_cast=["upcast", "allow-float"], float_cast="upcast", categorical_to_string="allow"
)
"""What a scan may do to a column so that it has the type in the common schema."""

_Bits: TypeAlias = dict[pl.DataType, int]
_UNSIGNED: Final[_Bits] = {pl.UInt8(): 8, pl.UInt16(): 16, pl.UInt32(): 32, pl.UInt64(): 64}
_SIGNED: Final[_Bits] = {pl.Int8(): 8, pl.Int16(): 16, pl.Int32(): 32, pl.Int64(): 64}
_FLOATS: Final[_Bits] = {pl.Float16(): 11, pl.Float32(): 24, pl.Float64(): 53}
_BITS: Final[_Bits] = {**_UNSIGNED, **_SIGNED, **_FLOATS}
"""Numbers from narrow to wide, and the bits that each holds; of a float, its mantissa's."""


_ODD_TYPES: Final = {
    "month_day_nano_interval": "INTERVAL",
    "list_view": "a list view",
    "large_list_view": "a list view",
    "run_end_encoded": "run-end encoded",
    "sparse_union": "a union",
    "dense_union": "a union",
    "extension<parquet.variant": "VARIANT",
    "extension<arrow.parquet.variant": "VARIANT",
}
"""How Arrow types begin that Polars does not read, and what they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What the files of a dataset have in common."""

    schema: pl.Schema | None  # holds every file's values; None if all files have the same one
    unread: Mapping[str, str] = field(default_factory=dict)  # columns without one type, and why


def common_schema(
    files: Iterable[tuple[str, pl.Schema]], columns: Mapping[str, str] | None = None
) -> Common:
    """Return what files have in common.

    Columns stand as in the first file; those that it lacks follow. A column that a file lacks will
    be null there, unless it is a log-prob: that is an error, whose source is the file, and so are
    types of a role's column that do not go together. Other columns of such types are left out.
    `columns` is role to column, as the user said.
    """
    layouts: dict[tuple[tuple[str, pl.DataType], ...], str] = {}
    for path, schema in files:
        layouts.setdefault(tuple(schema.items()), path)
    if len(layouts) == 1:
        return Common(schema=None)
    names = {path: [name for name, _ in layout] for layout, path in layouts.items()}
    logps = _logp_columns(names, columns)
    types: dict[str, dict[pl.DataType, str]] = {}
    for layout, path in layouts.items():
        for name, dtype in layout:
            types.setdefault(name, {}).setdefault(dtype, path)
    roles = {column: role for role, column in resolve(types, columns).mapping.items()}
    numbers = {n for n, role in roles.items() if ROLES[role].kind in ("logp", "count")} | logps
    common = {name: _widest(places, is_number=name in numbers) for name, places in types.items()}
    problems: dict[str, list[str]] = {path: [] for path in layouts.values()}
    unread = {}
    for name, widest in common.items():
        if widest is None:
            path, problem = _conflict(types[name], is_number=name in numbers)
            if name in roles:
                problems[path].append(f"{name}: it is {problem}")
            else:
                unread[name] = problem.replace(" here", f" in {path}", 1)
    for path, said in problems.items():
        if said:
            raise ColumnError(path, tuple(said))
    schema = pl.Schema({name: dtype for name, dtype in common.items() if dtype is not None})
    return Common(schema=schema, unread=unread)


def _logp_columns(
    files: Mapping[str, Sequence[str]], columns: Mapping[str, str] | None
) -> set[str]:
    """Return the log-prob columns, which each file must have, and under the same names."""
    found = {path: resolve(names, columns) for path, names in files.items()}
    logps = set()
    for role in LOGP_ROLES:
        uses = [(path, each.mapping.get(role.name)) for path, each in found.items()]
        first = next(((path, name) for path, name in uses if name is not None), None)
        if first is None:
            continue  # `bind` says so of the whole dataset
        logps.add(first[1])
        for path, name in uses:
            if name is None:
                said = [p for p in found[path].problems if p.startswith(f"{role.name}:")]
                said = said or [f"{role.name}: missing here, and {first[0]} has it"]
                raise ColumnError(path, tuple(said))
            if name != first[1]:
                problem = f"{role.name}: it is {name!r} here and {first[1]!r} in {first[0]}"
                raise ColumnError(path, (f"{problem}; give it one name in all files",))
    return logps


def _conflict(places: Mapping[pl.DataType, str], *, is_number: bool) -> tuple[str, str]:
    """Return the first file whose type does not go with those before it, and what to say."""
    types = list(places)
    odd = (
        next(n for n in range(2, len(types) + 1) if not _widest(types[:n], is_number=is_number)) - 1
    )
    other = next(t for t in types[:odd] if not _widest([t, types[odd]], is_number=is_number))
    return places[types[odd]], (
        f"{types[odd]} here and {other} in {places[other]}; no type holds both without loss, so "
        "convert one"
    )


def _widest(types: Iterable[Any], *, is_number: bool = False) -> pl.DataType | None:
    """Return the narrowest type that holds the values of all without loss; None if there is none.

    Log-probs and token counts are exact in Float64, so their integers go with floats.
    """
    some: set[Any] = set(types) - {pl.Null()}
    if len(some) <= 1:
        return some.pop() if some else pl.Null()
    if all(isinstance(t, pl.List) for t in some):
        inner = _widest(t.inner for t in some)
        return None if inner is None else pl.List(inner)
    if some == {pl.Categorical(), pl.String()}:
        return pl.String()
    if is_number and some <= set(_BITS) and some & set(_FLOATS):
        some -= {*_UNSIGNED, *_SIGNED}
        some.add(pl.Float64())
    return next((wide for wide in _BITS if all(_holds(wide, t) for t in some)), None)


def _holds(wide: pl.DataType, narrow: pl.DataType) -> bool:
    if wide == narrow:
        return True
    if narrow not in _BITS or (narrow in _FLOATS and wide not in _FLOATS):
        return False
    if narrow in _SIGNED and wide in _UNSIGNED:
        return False
    for_the_sign = int(narrow in _UNSIGNED and wide in _SIGNED)
    return _BITS[narrow] + for_the_sign <= _BITS[wide]


def unreadable(schema: Any, intervals: Iterable[str] = ()) -> dict[str, str]:
    """Return the columns of an Arrow schema that Polars does not read, and why.

    It would end on most of them in a panic, which its threads print before Python can catch it.
    pyarrow takes the `intervals` of Parquet for bytes.
    """
    names: list[str] = schema.names
    odd = {each.name: what for each in schema if (what := _odd(each.type)) is not None}
    odd |= dict.fromkeys(intervals, "INTERVAL")
    return {
        name: "several columns have this name"
        if names.count(name) > 1
        else f"it is {odd[name]}, which Polars does not read"
        for name in dict.fromkeys(names)
        if name in odd or names.count(name) > 1
    }


def readable_schema(arrow: Any, unread: Collection[str]) -> pl.Schema:
    """Return the columns of an Arrow schema that Polars reads."""
    import pyarrow as pa

    fields = [each for each in arrow if each.name not in unread]
    return pl.DataFrame(pa.schema(fields).empty_table()).schema


def _odd(dtype: Any) -> str | None:
    """Return what an Arrow type, or one inside it, is that Polars does not read."""
    import pyarrow as pa

    text = str(dtype)
    found = next((what for begin, what in _ODD_TYPES.items() if text.startswith(begin)), None)
    if found is not None:
        return found
    if pa.types.is_timestamp(dtype) and dtype.tz is not None:
        return None if _is_known(dtype.tz) else f"of the time zone {dtype.tz!r}"
    if pa.types.is_dictionary(dtype):
        return _odd(dtype.value_type)
    fields = [dtype.field(i) for i in range(dtype.num_fields)]
    parts = {each.name: each.type for each in fields}
    if pa.types.is_struct(dtype) and parts.get("metadata") == parts.get("value") == pa.binary():
        return "VARIANT"
    inside = (_odd(each.type) for each in fields)
    return next((what for what in inside if what is not None), None)


@cache
def _is_known(zone: str) -> bool:
    try:
        pl.Series(dtype=pl.Datetime("us", zone))
    except pl.exceptions.PolarsError:
        return False
    return True
