"""Options of what is read: pairs, their reference, and what a pair must be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, MISSING
from typing import Any, Final

from dpo_pipeline import arguments as kinds, defaults
from dpo_pipeline.arguments import (
    argument,
    check_choice,
    choice,
    group,
    option,
)
from dpo_pipeline.columns import PAIR_ID

_FORMAT: Final = "by the ending of the name, else parquet"


@group
class Pairs:
    """Where pairs are, and in which form."""

    source: Any = argument(
        "A dataframe of any kind, or files: a path, a list, a glob, a folder, an address."
    )
    _: KW_ONLY
    format: str | None = option(
        "--format",
        kinds.FORMAT,
        "The format of PAIRS.",
        varied={
            "compare": "The format of A and of B, which `evaluate --help` describes.",
            "convert": "The format of PAIRS, which `evaluate --help` describes.",
            "logps": "The format of DATA, which `evaluate --help` describes.",
        },
        shown=_FORMAT,
        default=None,
    )
    columns: Mapping[str, str] | None = option(
        "--column",
        kinds.ROLE_COLUMNS,
        "The input column of a role. Repeatable.",
        calls=("check", "evaluate", "sweep", "score", "select", "rank", "convert", "compare"),
        default=None,
    )
    reference: Reference | None = argument(
        "The reference of these pairs alone, for a side of a comparison.", default=None
    )
    pairing: str | None = option(
        "--pairing",
        choice(*defaults.PAIRINGS),
        "Make pairs of the completions of a prompt: each with each, the best with the worst, the "
        "best with each other, or each with the next best.",
        calls=("check", "evaluate", "sweep", "score", "select", "convert", "compare"),
        shown="",
        default=None,
    )

    def __post_init__(self) -> None:
        if self.pairing is not None:
            check_choice("pairing", self.pairing, defaults.PAIRINGS)


@group
class Reference:
    """Where the reference's log-probs are, if not beside the policy's."""

    source: Any = option(
        "--reference",
        kinds.PATH,
        "The reference's log-probs, if PAIRS has the policy's alone.",
        default=MISSING,
    )
    _: KW_ONLY
    on: str = option(
        "--on",
        kinds.COLUMN,
        "The key that joins PAIRS and --reference.",
        default=PAIR_ID.name,
        varied={"compare": "The key that joins A, B and --reference."},
    )
    format: str | None = option(
        "--reference-format",
        kinds.FORMAT,
        "The format of --reference.",
        shown=_FORMAT,
        default=None,
    )
    columns: Mapping[str, str] | None = option(
        "--reference-column",
        kinds.ROLE_COLUMNS,
        "As --column, for --reference. Repeatable.",
        default=None,
    )


@group
class Contract:
    """What a pair must be."""

    schema: Any = option(
        "--contract",
        kinds.OBJECT,
        "A pandera schema or model whose checks are added to the contract's.",
        consent=True,
        default=None,
    )
    _: KW_ONLY
    max_logp: float | None = option(
        "--max-logp",
        kinds.NUMBER,
        "Largest log-probability accepted, in nats; bf16 exports can reach 0.125.",
        shown=f"{defaults.MAX_LOGP:g}, or the format's",
        default=None,
    )
    sense: str = option(
        "--sense",
        choice(*defaults.SENSE),
        "Which pairs are searched for repeated ids and for what no two models give.",
        calls=("check", "evaluate", "sweep", "score"),
        default=defaults.SENSE[0],
    )

    def __post_init__(self) -> None:
        check_choice("sense", self.sense, defaults.SENSE)
