"""Lazy faces: a room's stub names what others may use; its files are imported when asked for.

This is the way of Scientific Python's SPEC 1, without its library: `__init__.pyi` says each name
once, for type checkers, for editors and at run time.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any


def face(room: str, init: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a room, whose `__init__.py` is `init`."""

    @cache
    def homes() -> Mapping[str, str]:
        with open(f"{os.path.splitext(init)[0]}.pyi", encoding="utf-8") as stub:
            tree = ast.parse(stub.read())
        return {
            alias.name: f"{room}.{node.module}"
            for node in tree.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }

    def find(name: str) -> Any:
        if name == "__all__":
            return sorted(homes())
        if name.startswith("__") or name not in homes():
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(import_module(homes()[name]), name)

    return find, lambda: sorted(homes())
