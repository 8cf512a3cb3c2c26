"""Options of `logps`: which models score texts, and how."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

from dpo_pipeline import arguments as kinds, defaults
from dpo_pipeline.arguments import Kind, argument, check_choice, choice, group, option
from dpo_pipeline.errors import UsageError


@group
class Models:
    """Which models score texts, and how."""

    policy: Any = option(
        "--policy",
        Kind("text", "MODEL"),
        "The policy: a folder, or the name of a model on a hub.",
        default=None,
    )
    _: KW_ONLY
    reference: Any = option(
        "--reference",
        Kind("text", "MODEL"),
        "The frozen reference. A policy with adapters needs none: it is the model below them.",
        default=None,
    )
    tokenizer: Any = argument("The tokenizer of models that are loaded already.", default=None)
    revision: str | None = option(
        "--revision", Kind("text"), "The policy's revision on the hub.", default=None
    )
    reference_revision: str | None = option(
        "--reference-revision", Kind("text"), "The reference's revision.", default=None
    )
    max_length: int | None = option(
        "--max-length",
        kinds.WHOLE,
        "Longest prompt and completion, in tokens: more is cut off, as TRL does, and counted. "
        "0 is no limit.",
        default=defaults.MAX_LENGTH,
    )
    dialect: str | None = option(
        "--dialect",
        choice("trl"),
        "trl: drop the rows that TRL drops, those whose prompt alone fills the length.",
        default=None,
    )
    dtype: str = option(
        "--dtype",
        choice(*defaults.DTYPES),
        "The type of the weights; sums are made in float64 whatever it is.",
        default=defaults.DTYPES[0],
    )
    device: str = option(
        "--device", Kind("text"), "auto, cpu, cuda, cuda:1 or another of torch.", default="auto"
    )
    batch_tokens: int = option(
        "--batch-tokens",
        kinds.WHOLE,
        "Tokens of a batch, padding included.",
        default=defaults.BATCH_TOKENS,
    )
    part_rows: int = option(
        "--part-rows",
        kinds.WHOLE,
        "Rows of a part, which a run that stopped goes on from.",
        default=defaults.ROWS_OF_A_PART,
    )

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, defaults.DTYPES)
        check_choice("dialect", self.dialect, (None, "trl"))
        for name in ("max_length", "batch_tokens", "part_rows"):
            value, least = getattr(self, name), 0 if name == "max_length" else 1
            is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
            if not (is_whole or (value is None and name == "max_length")):
                raise UsageError(f"{name} must be a whole number from {least} on, found {value!r}")
