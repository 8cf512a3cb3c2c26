"""JSON Schemas of classes, read from the types of their fields."""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import polars as pl

Schema = dict[str, Any]

NUMBER: Final[Schema] = {"type": ["number", "null"]}
"""Any figure: what is not finite is null in a document."""
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
TEXT: Final[Schema] = {"type": "string"}
ROWS: Final[Schema] = {"type": "array", "items": {"type": "object"}}

_NOT_WRITTEN: Final = frozenset({"gathered"})
"""Fields that no document has."""
_PLAIN: Final[Mapping[Any, Schema]] = {
    float: NUMBER,
    int: {"type": "integer"},
    bool: {"type": "boolean"},
    str: TEXT,
    pl.DataFrame: ROWS,
}


def document(
    title: str,
    definitions: Iterable[Any],
    *,
    optional: Mapping[str, Schema] | None = None,
    **properties: Schema,
) -> str:
    """Return the text of the schema of a document; `properties` refer to the definitions."""
    found: dict[str, Schema] = {}
    for kind in definitions:
        _define(kind, found)
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **object_of(**properties),
        "$defs": found,
    }
    schema["properties"].update(optional or {})
    return json.dumps(schema, indent=2) + "\n"


def object_of(**properties: Schema) -> Schema:
    """Return the schema of an object that has exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def list_of(items: Schema, **more: Any) -> Schema:
    """Return the schema of an array."""
    return {"type": "array", **more, "items": items}


def nullable(schema: Schema) -> Schema:
    """Return a schema that accepts null as well."""
    if schema.get("type") == NUMBER["type"]:
        return schema
    return {"anyOf": [schema, {"type": "null"}]}


def described(schema: Schema, text: str) -> Schema:
    """Return a schema with a description behind it."""
    return {**schema, "description": text}


def reference_to(kind: Any) -> Schema:
    """Return the schema of a class that stands among the definitions of its document."""
    return {"$ref": f"#/$defs/{kind.__name__}"}


def properties_of(kind: Any, *, whole: Schema | None = None) -> dict[str, Schema]:
    """Return the schema of each field of a dataclass; `whole` is that of its whole numbers."""
    hints = get_type_hints(kind)
    plain = _PLAIN if whole is None else {**_PLAIN, int: whole}
    names = [field.name for field in fields(kind) if field.name not in _NOT_WRITTEN]
    return {name: _of(hints[name], plain) for name in names}


def _of(kind: Any, plain: Mapping[Any, Schema]) -> Schema:
    """Return the schema of values of a type, as `to_dict` of the results writes them."""
    arguments = get_args(kind)
    if get_origin(kind) in {Union, types.UnionType}:
        (inner,) = (each for each in arguments if each is not type(None))
        return nullable(_of(inner, plain))
    if get_origin(kind) is Literal:
        return {"enum": list(arguments)}
    if get_origin(kind) is Mapping:
        return {"type": "object", "additionalProperties": _of(arguments[1], plain)}
    if get_origin(kind) is tuple:
        return list_of(_of(arguments[0], plain))
    if is_dataclass(kind):
        return reference_to(kind)
    return dict(plain.get(kind, {}))


def _define(kind: Any, found: dict[str, Schema]) -> None:
    """Add the schemas of the classes that a type names, and of those that their fields name."""
    for each in get_args(kind):
        _define(each, found)
    if isinstance(kind, type) and is_dataclass(kind) and kind.__name__ not in found:
        found[kind.__name__] = object_of(**properties_of(kind))
        for name in properties_of(kind):
            _define(get_type_hints(kind)[name], found)
