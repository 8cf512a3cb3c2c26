"""The formats that pairs can be in, as data: no Polars here, so that `--help` can list them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from dpo_pipeline.defaults import LOGP_LIMIT


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format and what is to be known before one reads it.

    Attributes:
        name: What it is called.
        description: What is in it, in a few words.
        endings: File names that end so are in this format and in no other.
        reference_only: Whether it holds the reference's log-probs and never the policy's.
        has_reference: Whether it can hold the reference's log-probs at all.
        settings: Arguments of `evaluate` with which the figures are those of the tool.
    """

    name: str
    description: str
    endings: tuple[str, ...] = ()
    reference_only: bool = False
    has_reference: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)


PARQUET: Final = "parquet"
NDJSON: Final = "ndjson"
CSV: Final = "csv"
IPC: Final = "ipc"
TRL: Final = "trl"
REWARDBENCH: Final = "rewardbench"
OPEN_INSTRUCT: Final = "open-instruct"
OPEN_INSTRUCT_AVERAGED: Final = "open-instruct-averaged"
VLLM: Final = "vllm"

_ROWS: Final = (
    Format(name=PARQUET, description="Parquet", endings=(".parquet",)),
    Format(name=NDJSON, description="one JSON object a line", endings=(".jsonl", ".ndjson")),
    Format(name=CSV, description="commas, with a header", endings=(".csv",)),
    Format(
        name=IPC,
        description="Arrow IPC, files (Feather) or streams",
        endings=(".arrow", ".feather", ".ipc"),
    ),
    Format(
        name=TRL,
        description="a dataset with TRL's precomputed reference log-probs: a folder of "
        "save_to_disk, an .arrow file of its cache, or Parquet",
    ),
    Format(
        name=REWARDBENCH,
        description="RewardBench's scores: _outputs.jsonl, _all.jsonl, eval-set-scores/*.json",
        has_reference=False,
        # A score is the log-ratio itself, which can be above 0, or a policy's log-prob.
        settings={
            "dialect": "rewardbench",
            "max_logp": LOGP_LIMIT,
            "loss_args": {"reference_free": True},
        },
    ),
    Format(
        name=OPEN_INSTRUCT,
        description="open-instruct's cache of reference log-probs (.pt; needs torch)",
        reference_only=True,
    ),
    Format(
        name=OPEN_INSTRUCT_AVERAGED,
        description="the same, made for dpo_norm or simpo: averages over tokens",
        reference_only=True,
    ),
    Format(name=VLLM, description="responses of vLLM with prompt_logprobs, one a line"),
)

FORMATS: Final[Mapping[str, Format]] = MappingProxyType({row.name: row for row in _ROWS})
"""Every format by its name."""


def guess(source: object) -> str:
    """Return the format that the ending of a path tells; Parquet where it tells none."""
    endings = {_format_of(path) for path in _paths(source)}
    return endings.pop() if len(endings) == 1 else PARQUET


def _paths(source: object) -> Iterator[str]:
    for path in source if isinstance(source, (list, tuple)) else [source]:
        if isinstance(path, (str, os.PathLike)):
            yield str(os.fspath(path))


def _format_of(path: str) -> str:
    ending = os.path.splitext(path)[1].lower()
    return next((row.name for row in _ROWS if ending in row.endings), PARQUET)
