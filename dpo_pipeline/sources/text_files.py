"""Readers of tables of text: NDJSON and CSV, lazy and in bounded memory.

A column that plays a role is read as its type whatever its first rows look like. What the engine
cannot read is said by line or row.
"""

from __future__ import annotations

import codecs
import glob
import io
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, Final, Literal

import polars as pl

from dpo_pipeline.columns import ROLES, resolve
from dpo_pipeline.errors import ColumnError, DpoPipelineError, StorageError
from dpo_pipeline.sources.common_schema import lines_fit
from dpo_pipeline.sources.files import Found, SourcePath, text_files
from dpo_pipeline.sources.formats import CSV, FORMATS, NDJSON
from dpo_pipeline.sources.frames import Rows, lazily, reading_as
from dpo_pipeline.storage import copies_among, is_packed, unpacked

_KINDS: Final[Mapping[type, str]] = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
    type(None): "null",
}
_MIXED: Final = ({"a number", "text"},)
"""Kinds that one column can hold: numbers beside text are read as text."""


def ragged_lines(path: str) -> str | None:
    """Say where lines of a CSV file have more fields than its header; None if none has."""
    with unpacked(path) as file:
        records = _records(file)
        _, n_names = next(records, (1, 1))
        count, first = 0, None
        for number, n_fields in records:
            if n_fields > n_names:
                count += 1
                first = first or (number, n_fields)
    if first is None:
        return None
    lines = f"{count:,} such line{'s' * (count != 1)}"
    return (
        f"line {first[0]:,} has {first[1]} fields, the header {n_names} ({lines}); quote values "
        "that contain commas"
    )


def _records(lines: Iterator[bytes]) -> Iterator[tuple[int, int]]:
    """Yield the line on which each record begins, from 1, and its number of fields."""
    is_quoted, begin, commas = False, 1, 0
    for number, line in enumerate(lines, 1):
        if not is_quoted:
            begin, commas = number, 0
        for i, part in enumerate(line.split(b'"')):
            is_quoted ^= i > 0
            commas += 0 if is_quoted else part.count(b",")
        if not is_quoted:
            yield begin, commas + 1


def broken_json(path: str) -> str | None:
    """Say which line of a file is no JSON object, or has a key of another kind than before."""
    seen: dict[str, dict[str, int]] = {}
    with unpacked(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                return f"line {number:,} is no JSON: {error.msg} at character {error.colno}"
            except ValueError as error:  # bytes that are not UTF-8
                return f"line {number:,}: {error}"
            if not isinstance(row, dict):
                return f"line {number:,}: must be an object, found {_KINDS[type(row)]}"
            for name, value in row.items():
                if value is None:
                    continue
                kinds = seen.setdefault(name, {})
                kinds.setdefault(_KINDS[type(value)], number)
                if len(kinds) > 1 and set(kinds) not in _MIXED:
                    told = (f"{kind} on line {where:,}" for kind, where in kinds.items())
                    return f"{name}: is {', and '.join(told)}"
    return None


INFERRED_ROWS: Final = 10_000
"""Rows that say of which types the columns of CSV are that play no role."""

_AS_ROLE: Final[Mapping[str, pl.DataType]] = {
    "logp": pl.Float64(),
    "count": pl.Int64(),
    "tokens": pl.List(pl.Float64),
    **dict.fromkeys(("rank", "score"), pl.Float64()),
}
_NUMBERS: Final = ("logp", "count", "rank", "score")
_OTHER_SEPARATORS: Final = (";", "\t", "|")
_NOT_NDJSON: Final = "cannot be read as NDJSON, one JSON object a line"
_AS_TEXT: Final = (
    f"columns without a role are of the type of their first {INFERRED_ROWS:,} rows; what is text "
    'all the same: dpo_pipeline.read(path, as_text=["NAME"])'
)
_TRUTH: Final = {"true": True, "false": False}
_NOT_ARRAY: Final = "cannot be read as JSON, an array of objects"
_CHUNK: Final = 2**20
_LARGE: Final = 2**22
"""Bytes of a file from which on it pays to look first whether all lines are alike."""
_LINES: Final = 5_000
"""Bytes, and objects of an array, that are parsed at a time."""
_CONSTANT: Final = re.compile(rb"(?:NaN|Infinity)(?=\s*[,}\]])")
"""A value that JSON has not, or what looks so in a text; no key."""
_BETWEEN: Final = re.compile(r"[\s,\[]*")


def ndjson(
    source: SourcePath,
    columns: Mapping[str, str] | None = None,
    *,
    types: Mapping[str, pl.DataType] | None = None,
) -> Rows:
    """Return rows of JSON objects, one a line; `types` are those of columns without a role.

    All lines are read once to know all keys and their types, and once more for the rows.
    """
    found = _json_files(source)
    paths = list(found.paths)
    keys = {path: _keys_of(path) for path in paths}
    with reading_as(paths[0], "NDJSON"):
        empty = [schema.to_frame() for schema, _ in keys.values()]
        schema = dict(pl.concat(empty, how="diagonal_relaxed").schema)
    roles = [(kind, name) for kind, name in _roles(schema, columns) if kind in _AS_ROLE]
    texts = [name for kind, name in roles if kind in _NUMBERS and schema[name] == pl.String]
    schema |= {name: _as_role(kind, schema[name]) for kind, name in roles}
    schema |= types or {}
    scan = pl.concat(
        _scanned(list(some), schema) if is_plain else _in_chunks(list(some), pl.Schema(schema))
        for is_plain, some in groupby(paths, lambda path: keys[path][1])
    )
    with reading_as(paths[0], "NDJSON"):
        problems = tuple(filter(None, (_misfits(scan, name, pl.Float64()) for name in texts)))
    if problems:
        raise ColumnError(paths[0], problems)

    def fault(_names: Collection[str]) -> DpoPipelineError | None:
        return _first_fault(paths, broken_json)

    rows = _diagnosed(scan, paths, "NDJSON", fault)
    return Rows(rows, found.identities, (*found.notes, *copies_among(paths)))


def _json_files(source: SourcePath) -> Found:
    """Return the files of a source; those of a folder end in .json if none ends as lines do."""
    if isinstance(source, (str, os.PathLike)) and os.path.isdir(source):
        with suppress(StorageError):
            return text_files(source, FORMATS[NDJSON].endings)
        return text_files(source, (".json",))
    return text_files(source, FORMATS[NDJSON].endings)


def _scanned(paths: Sequence[str], schema: Mapping[str, pl.DataType]) -> pl.LazyFrame:
    # It takes every path for a pattern.
    return pl.scan_ndjson([glob.escape(path) for path in paths], schema=dict(schema))


def _keys_of(path: str) -> tuple[pl.Schema, bool]:
    """Return the columns of a file, and whether Polars reads it by itself.

    It reads no byte-order mark, no array, and none of the NaN and Infinity that Python writes.
    """
    what = "NDJSON, one JSON object a line"
    if not _has_mark(path) and not _is_array(path):
        with suppress(StorageError), reading_as(path, what):
            if os.path.getsize(path) > _LARGE and not is_packed(path):
                plan = pl.scan_ndjson(glob.escape(path), infer_schema_length=INFERRED_ROWS)
                if lines_fit(path, schema := plan.collect_schema()):
                    return schema, True
            plan = pl.scan_ndjson(glob.escape(path), infer_schema_length=None)
            return plan.collect_schema(), True
    try:
        with reading_as(path, what):
            # A number in place of what is none tells the type; text stays text.
            chunks = (
                _CONSTANT.sub(b"0.5", chunk) if _has_constant(chunk) else chunk
                for chunk in _json_chunks(path)
            )
            schemas = [
                pl.read_ndjson(chunk, infer_schema_length=None).clear() for chunk in chunks if chunk
            ]
            if not schemas:
                raise StorageError(path, f"{_NOT_NDJSON}: there is none")
            return pl.concat(schemas, how="diagonal_relaxed").schema, False
    except StorageError:
        problem = None if _is_array(path) else broken_json(path)
        if problem is None:
            raise
        raise StorageError(path, f"{_NOT_NDJSON}: {problem}") from None


def _has_constant(chunk: bytes) -> bool:
    """Return whether a chunk may have a number that JSON has not; text that says so counts."""
    return b"NaN" in chunk or b"Infinity" in chunk


def _has_mark(path: str) -> bool:
    with unpacked(path) as file:
        return file.read(3) == codecs.BOM_UTF8


def _is_array(path: str) -> bool:
    with unpacked(path) as file:
        return file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _json_chunks(path: str) -> Iterator[bytes]:
    """Yield the lines of a file, many at a time; the objects of an array are lines too."""
    if _is_array(path):
        yield from _lines_of_array(path)
        return
    with unpacked(path) as file:
        rest = b""
        while more := file.read(_CHUNK):
            rest += more
            end = rest.rfind(b"\n") + 1
            yield rest[:end].removeprefix(codecs.BOM_UTF8).strip()
            rest = rest[end:]
        yield rest.removeprefix(codecs.BOM_UTF8).strip()


def _lines_of_array(path: str) -> Iterator[bytes]:
    """Yield the objects of an array as lines, many at a time."""
    decoder = json.JSONDecoder()
    with unpacked(path) as packed:
        file = io.TextIOWrapper(packed, encoding="utf-8-sig")
        text, place = file.read(_CHUNK), 0
        lines: list[str] = []
        while True:
            between = _BETWEEN.match(text, place)
            place = place if between is None else between.end()
            if text[place : place + 1] == "]":
                break
            try:
                row, place = decoder.raw_decode(text, place)
            except json.JSONDecodeError as error:
                more = file.read(_CHUNK)
                if not more:
                    problem = f"{_NOT_ARRAY}: {error.msg}, after {len(lines):,} objects"
                    raise StorageError(path, problem) from error
                text, place = text[place:] + more, 0
                continue
            lines.append(json.dumps(row))
            if len(lines) == _LINES:
                yield "\n".join(lines).encode()
                lines = []
    yield "\n".join(lines).encode()


def _in_chunks(paths: Sequence[str], schema: pl.Schema) -> pl.LazyFrame:
    """Return the rows of files that Polars does not read by itself."""

    def parts(names: list[str], _n_rows: int | None) -> Iterator[pl.DataFrame]:
        for path in paths:
            for chunk in filter(None, _json_chunks(path)):
                if not _has_constant(chunk):
                    yield pl.read_ndjson(chunk, schema=schema).select(names)
                else:
                    rows = [json.loads(line) for line in chunk.split(b"\n") if line.strip()]
                    yield pl.DataFrame(rows, schema=schema, strict=False).select(names)

    return lazily(schema, parts)


def csv(
    source: SourcePath, columns: Mapping[str, str] | None = None, *, as_text: Collection[str] = ()
) -> Rows:
    """Return the rows of files with a header and commas.

    Keys (`pair_id`, `prompt_id`) and `as_text` are text, so that 7 and 07 are two. A row with fewer
    fields than the header has nulls at its end; one with more is an error; one without a value, as
    a blank line, is none. Files may have their columns in different orders.
    """
    found = text_files(source, FORMATS[CSV].endings)
    paths = list(found.paths)
    scanned: dict[str, Any] = {"glob": False, "missing_columns": _order_of(paths)}
    with reading_as(paths[0], "CSV"):
        inferred = pl.scan_csv(paths, **scanned, infer_schema_length=INFERRED_ROWS)
        schema = inferred.collect_schema()
    only = "".join(schema) if len(schema) == 1 else ""
    separator = next((s for s in _OTHER_SEPARATORS if s in only), None)
    if separator is not None:
        problem = f"the separator looks like {separator!r}, and commas are read: save it with them"
        raise StorageError(paths[0], problem)
    problems = [
        f"{name.removesuffix('_duplicated_0')}: the header has it twice"
        for name in schema.names()
        if name.endswith("_duplicated_0") and name.removesuffix("_duplicated_0") in schema
    ]
    numbers = {name: kind for kind, name in _roles(schema, columns) if kind in _NUMBERS}
    types = {
        name: pl.Float64() if schema[name] == pl.Float64 else _AS_ROLE[kind]
        for name, kind in numbers.items()
    }
    # Polars notices a row with too many fields only when it reads all columns. Columns without a
    # role are therefore read as text, which cannot fail, and cast where a caller asks for them.
    read_as = {name: types.get(name, pl.String()) for name in schema}
    # A blank line may hold spaces, which are the first field then.
    first, *following = schema
    is_blank = pl.col(first).cast(pl.String).str.strip_chars() == ""
    has_value = pl.any_horizontal(pl.col(following).is_not_null()) | ~is_blank.fill_null(value=True)
    whole = (
        pl.scan_csv(paths, **scanned, schema_overrides=read_as)
        .filter(has_value)
        .map_batches(
            lambda rows: rows, streamable=True, projection_pushdown=False, predicate_pushdown=False
        )
    )
    texts = pl.scan_csv(paths, **scanned, infer_schema=False).filter(has_value)
    with reading_as(paths[0], "CSV"):
        of_first_rows = [name for name in numbers if schema[name] == pl.String]
        problems += filter(None, (_misfits(texts, n, pl.Float64()) for n in of_first_rows))
    if problems:
        raise ColumnError(paths[0], tuple(problems))
    named = [*as_text, *(name for kind, name in _roles(schema, columns) if kind == "key")]
    others = {
        name: dtype
        for name, dtype in schema.items()
        if name not in types and name not in named and dtype != pl.String
    }

    def fault(names: Collection[str]) -> DpoPipelineError | None:
        ragged = _first_fault(paths, ragged_lines)
        if ragged is not None:
            return ragged
        asked = types | {name: dtype for name, dtype in others.items() if name in names}
        with reading_as(paths[0], "CSV"):
            found = [_misfits(texts, name, dtype) for name, dtype in asked.items()]
        problems = tuple(filter(None, found))
        if any(problem.partition(":")[0] in others for problem in problems):
            problems += (_AS_TEXT,)
        return ColumnError(paths[0], problems) if problems else None

    as_types = {name: _of_text(pl.col(name), dtype) for name, dtype in others.items()}
    frame = _diagnosed(whole, paths, "CSV", fault, as_types=as_types)
    return Rows(frame, found.identities, (*found.notes, *copies_among(paths)))


def _order_of(paths: Sequence[str]) -> Literal["insert", "raise"]:
    """Return `insert`, which finds columns by name, if files have them in different orders."""
    names: dict[str, list[str]] = {}
    for path in paths:
        with reading_as(path, "CSV"):
            names[path] = pl.scan_csv(path, glob=False, infer_schema=False).collect_schema().names()
    first = names[paths[0]]
    for path, own in names.items():
        more, fewer = (sorted({*a} - {*b}) for a, b in ((own, first), (first, own)))
        problems = [f"{name}: it is here, and not in {paths[0]}" for name in more]
        problems += [f"{name}: missing here, and {paths[0]} has it" for name in fewer]
        if problems:
            raise ColumnError(path, tuple(problems))
    return "raise" if all(own == first for own in names.values()) else "insert"


def _roles(
    schema: Mapping[str, pl.DataType], columns: Mapping[str, str] | None
) -> Iterator[tuple[str, str]]:
    """Yield the kind of each role that is there, and its column."""
    for role, name in resolve(schema, columns).mapping.items():
        yield ROLES[role].kind, name


def _as_role(kind: str, found: pl.DataType) -> pl.DataType:
    """Return the type of a role, unless the rows are of another kind."""
    is_number = found.is_integer() or found == pl.Null
    is_list = isinstance(found, pl.List) and (found.inner.is_integer() or found.inner == pl.Null)
    fits = is_list or found == pl.Null if kind == "tokens" else is_number
    return _AS_ROLE[kind] if fits else found


def _of_text(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Return what text says: null where it is empty, an error where it is of another type."""
    text = column.str.strip_chars()
    said = pl.when(text != "").then(text)
    if dtype == pl.Boolean:
        return said.str.to_lowercase().replace_strict(_TRUTH, return_dtype=pl.Boolean)
    return said.cast(dtype)


def _misfits(texts: pl.LazyFrame, name: str, dtype: pl.DataType) -> str | None:
    """Return what is wrong with a column of text that was to be of a type; None if nothing is."""
    text = pl.col(name).str.strip_chars()
    fits = (
        text.str.to_lowercase().is_in(list(_TRUTH))
        if dtype == pl.Boolean
        else text.cast(dtype, strict=False).is_not_null()
    )
    count, row, value = (
        texts.with_row_index("__row")
        .filter((text != "") & fits.not_())
        .select(pl.len(), pl.col("__row").first(), pl.col(name).first())
        .collect(engine="streaming")
        .row(0)
    )
    if not count:
        return None
    rows = f"{count:,} row{'' if count == 1 else 's'}"
    wanted, found = "a number", "text"
    if dtype == pl.Boolean:
        wanted = "true or false"
    elif dtype.is_integer():
        wanted, found = "a whole number", "something else"
    return f"{name}: must be {wanted}, and is {found} in {rows}, first at row {row}: {value!r}"


def _first_fault(paths: Sequence[str], fault: Callable[[str], str | None]) -> StorageError | None:
    found = ((path, fault(path)) for path in paths)
    return next((StorageError(path, text) for path, text in found if text is not None), None)


def _diagnosed(
    scan: pl.LazyFrame,
    paths: Sequence[str],
    what: str,
    fault: Callable[[Collection[str]], DpoPipelineError | None],
    *,
    as_types: Mapping[str, pl.Expr] | None = None,
) -> pl.LazyFrame:
    """Return the rows of a scan, whose errors are told by `fault`, if it knows.

    `as_types` are made of the columns that are asked for.
    """
    made = dict(as_types or {})
    with reading_as(paths[0], what):
        schema = scan.with_columns(**made).collect_schema()

    def parts(names: list[str], n_rows: int | None) -> Iterator[pl.DataFrame]:
        plan = scan.select(made.get(name, pl.col(name)).alias(name) for name in names)
        if n_rows is not None:
            plan = plan.head(n_rows)
        try:
            with reading_as(paths[0], what):
                yield from plan.collect_batches(maintain_order=True)
        except StorageError as error:
            known = fault(names)
            if known is None:
                raise
            raise known from error

    return lazily(schema, parts)
