"""Options of where the work is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY
from threading import Event
from typing import Any, Literal

from dpo_pipeline import arguments as kinds, defaults
from dpo_pipeline.arguments import (
    Kind,
    argument,
    choice,
    group,
    option,
)


@group
class Execution:
    """Where the work is done, and how its data is reached."""

    engine: Any = option(
        "--engine",
        choice(*defaults.ENGINES),
        "Where the work is done; what is computed does not depend on it.",
        default=defaults.ENGINES[0],
        calls=("check", "evaluate", "sweep", "score", "compare"),
    )
    _: KW_ONLY
    ray_address: str | None = option(
        "--ray-address",
        Kind("text", "ADDRESS"),
        "The Ray cluster of --engine ray.",
        consent=True,
        shown="RAY_ADDRESS, or a cluster that is started here",
        calls=("check", "evaluate", "sweep", "score"),
        default=None,
    )
    storage_options: Mapping[str, Any] | None = option(
        "--storage-option",
        Kind("store", "NAME=VALUE", repeats=True, secret=True),
        "What Polars is to know of an object store: aws_region=us-east-1. Repeatable; keys "
        "and tokens are better in the environment, or from --credential-provider.",
        consent=True,
        default=None,
    )
    credential_provider: Callable[[], Any] | Literal["auto"] | None = option(
        "--credential-provider",
        kinds.OBJECT,
        "A function that gives credentials of the store, as in Polars.",
        consent=True,
        default="auto",
        shown="",
    )
    progress: Callable[[Any], None] | None = argument(
        "Called with a `Progress` now and then, maybe from another thread.", default=None
    )
    cancel: Event | None = argument("Set it to stop the run.", default=None)
