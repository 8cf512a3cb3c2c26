"""One schema for the files of a dataset that do not all have the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import polars as pl

from dpo_pipeline.columns import LOGP_ROLES, resolve
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


def common_schema(
    files: Iterable[tuple[str, pl.Schema]], columns: Mapping[str, str] | None = None
) -> pl.Schema | None:
    """Return the schema that holds every file's values; None if all files have the same one.

    Columns stand as in the first file; those that it lacks follow. A column that a file lacks will
    be null there, unless it is a log-prob: that is an error, whose source is the file, and so are
    types that do not go together. `columns` is role to column, as the user said.
    """
    layouts: dict[tuple[tuple[str, pl.DataType], ...], str] = {}
    for path, schema in files:
        layouts.setdefault(tuple(schema.items()), path)
    if len(layouts) == 1:
        return None
    names = {path: [name for name, _ in layout] for layout, path in layouts.items()}
    logps = _logp_columns(names, columns)
    types: dict[str, dict[pl.DataType, str]] = {}
    for layout, path in layouts.items():
        for name, dtype in layout:
            types.setdefault(name, {}).setdefault(dtype, path)
    common = {name: _widest(places, is_logp=name in logps) for name, places in types.items()}
    problems: dict[str, list[str]] = {path: [] for path in layouts.values()}
    for name, widest in common.items():
        if widest is None:
            path, problem = _conflict(types[name], is_logp=name in logps)
            problems[path].append(f"{name}: {problem}")
    for path, said in problems.items():
        if said:
            raise ColumnError(path, tuple(said))
    return pl.Schema({name: dtype for name, dtype in common.items() if dtype is not None})


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


def _conflict(places: Mapping[pl.DataType, str], *, is_logp: bool) -> tuple[str, str]:
    """Return the first file whose type does not go with those before it, and what to say."""
    types = list(places)
    odd = next(n for n in range(2, len(types) + 1) if not _widest(types[:n], is_logp=is_logp)) - 1
    other = next(t for t in types[:odd] if not _widest([t, types[odd]], is_logp=is_logp))
    return places[types[odd]], (
        f"it is {types[odd]} here and {other} in {places[other]}; no type holds both without "
        "loss, so convert one"
    )


def _widest(types: Iterable[Any], *, is_logp: bool = False) -> pl.DataType | None:
    """Return the narrowest type that holds the values of all without loss; None if there is none.

    A log-prob is worked with as Float64 whatever it is, so integers of any width go with floats.
    """
    some: set[Any] = set(types) - {pl.Null()}
    if len(some) <= 1:
        return some.pop() if some else pl.Null()
    if all(isinstance(t, pl.List) for t in some):
        inner = _widest(t.inner for t in some)
        return None if inner is None else pl.List(inner)
    if some == {pl.Categorical(), pl.String()}:
        return pl.String()
    if is_logp and some <= set(_BITS) and some & set(_FLOATS):
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
