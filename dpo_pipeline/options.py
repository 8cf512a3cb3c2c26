"""Every option of the library, once: a field of one of these groups.

A field holds its flag, its kind, its help and its default. The command line, the settings, the
environment variables, the table of options, the docstrings and the dry run walk over the fields.
Calls take groups, or their short forms: `on_invalid="exclude"` stands for `OnInvalid("exclude")`.
To add an option, add a field here, and use it where the call reads it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY, MISSING, replace
from threading import Event
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal

from dpo_pipeline import arguments as kinds, defaults
from dpo_pipeline.arguments import (
    NOTHING,
    Kind,
    Option,
    argument,
    check_benchmark,
    check_choice,
    checked_names,
    choice,
    group,
    option,
    split_names,
)
from dpo_pipeline.columns import PAIR_ID
from dpo_pipeline.errors import UsageError

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
        },
        shown=_FORMAT,
        default=None,
    )
    columns: Mapping[str, str] | None = option(
        "--column",
        kinds.ROLE_COLUMNS,
        "The input column of a role. Repeatable.",
        default=None,
    )
    reference: Reference | None = argument(
        "The reference of these pairs alone, for a side of a comparison.", default=None
    )


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


@group
class Objective:
    """What is computed of a pair."""

    loss: Any = option(
        "--loss",
        kinds.LOSSES,
        "A loss (`dpo-pipeline losses` lists them). Repeated: their weighted sum.",
        default=defaults.LOSS_NAME,
        shown=defaults.LOSS_NAME,
        varied={
            "sweep": {
                "kind": Kind("text", "NAME", repeats=True, completes="loss"),
                "help": "A loss (`dpo-pipeline losses` lists them). Repeatable.",
            }
        },
    )
    _: KW_ONLY
    beta: Any = option(
        "--beta",
        kinds.NUMBER,
        "KL strength of the loss, at least 0.",
        shown=f"{defaults.BETA:g}, or the dialect's",
        varied={
            "sweep": {
                "kind": Kind("number", repeats=True),
                "help": "KL strength of the losses, at least 0. Repeatable.",
            }
        },
        default=None,
    )
    arguments: Mapping[str, float | bool | str] = option(
        "--loss-arg",
        kinds.VALUES,
        "An argument of the loss: label_smoothing=0.1, per_token=true. Repeatable.",
        default=NOTHING,
    )
    dialect: str | None = option(
        "--dialect",
        choice(*defaults.DIALECT_NAMES),
        "The conventions of a system, where systems disagree.",
        default=None,
    )


@group
class Subsets:
    """Figures by subset."""

    by: str | Sequence[str] = option(
        "--by", kinds.COLUMNS, default=(), help="Figures by subset, of one column or several."
    )
    _: KW_ONLY
    histogram: bool = option(
        "--histogram",
        kinds.FLAG,
        "Also the histogram of margins (with --json).",
        default=False,
        calls=("evaluate", "score"),
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, each once."""
        return checked_names("by", self.by)

    def within(self, columns: Collection[str]) -> Subsets:
        """Return the same for these columns: names with commas between them are taken apart."""
        split = split_names(self.names, columns)
        return self if split == self.names else replace(self, by=split)


@group
class Batches:
    """Means of batches."""

    SHORT: ClassVar[Mapping[Any, str]] = MappingProxyType({str: "file", os.PathLike: "file"})

    size: int | None = option(
        "--batch-size", kinds.WHOLE, "Means of so many consecutive rows.", default=None
    )
    _: KW_ONLY
    by: str | None = option(
        "--batch-by", kinds.COLUMN, help="Means by the value of a column.", default=None
    )
    file: str | os.PathLike[str] | None = option(
        "--batches",
        kinds.PATH,
        "Write the batch means to this Parquet file; needed beyond "
        f"{defaults.MAX_BATCHES_HELD:,} batches.",
        default=None,
    )


@group
class OnInvalid:
    """What happens to pairs that break the contract."""

    action: str = option(
        "--on-invalid",
        choice(*defaults.ON_INVALID),
        "What to do with pairs that break the contract.",
        default="raise",
        calls=("evaluate", "sweep", "score", "compare"),
        varied={"score": {"kind": choice(*defaults.ON_INVALID_JOB)}},
    )
    _: KW_ONLY
    at_most: float | None = option(
        "--max-invalid",
        kinds.SHARE,
        "Fail if more pairs are invalid: a count (10) or a share (0.01, 1%).",
        default=None,
    )
    file: str | os.PathLike[str] | None = option(
        "--invalid",
        kinds.PATH,
        "Where quarantined pairs go.",
        shown="beside OUT, with .invalid before the ending",
        calls=("score",),
        default=None,
    )


@group
class Scored:
    """What scored pairs contain, and how they are cut into files."""

    keep: str | Sequence[str] | None = option(
        "--keep", kinds.COLUMNS, "Input columns to carry along.", default=None
    )
    _: KW_ONLY
    replace: bool = option(
        "--replace", kinds.FLAG, "Overwrite input columns named like an output's.", default=False
    )
    part_rows: int | None = option(
        "--part-rows",
        kinds.WHOLE,
        "Cut inputs, between row groups, into parts of at most so many rows: OUT is a folder.",
        default=None,
    )
    compression: str = option(
        "--compression",
        choice(*defaults.COMPRESSIONS),
        "Of scored and invalid pairs: snappy and none are written faster, and are larger.",
        default=defaults.COMPRESSIONS[0],
    )

    def __post_init__(self) -> None:
        check_choice("compression", self.compression, defaults.COMPRESSIONS)


@group
class Outputs:
    """Documents that a call writes, whole or not at all."""

    summary: str | os.PathLike[str] | None = option(
        "--summary",
        kinds.PATH,
        "Keep the JSON document in this file.",
        calls=("check", "evaluate", "sweep", "score", "compare"),
        default=None,
    )
    _: KW_ONLY
    report: str | os.PathLike[str] | None = option(
        "--report",
        kinds.PATH,
        "Write the report, an HTML page, to this file (extra `report`). Asks for statistics.",
        calls=("evaluate", "compare"),
        default=None,
    )
    overwrite: bool = option(
        "--overwrite", kinds.FLAG, default=False, help="Replace outputs that exist.", consent=True
    )
    show: str | Sequence[str] = option(
        "--show",
        kinds.COLUMNS,
        "Show these columns (prompt, chosen, rejected) of the worst pairs and of invalid rows.",
        calls=("check", "evaluate", "compare"),
        default=(),
    )
    worst: int = option(
        "--worst",
        kinds.WHOLE,
        f"List so many of the lowest margins, or flips; up to {defaults.WORST_HELD}.",
        calls=("evaluate", "compare"),
        default=defaults.ROWS_SHOWN,
    )
    protected: tuple[str, ...] = argument(
        "Files that must never become outputs, such as those of settings.", default=()
    )

    def __post_init__(self) -> None:
        if not (isinstance(self.worst, int) and 0 < self.worst <= defaults.WORST_HELD):
            raise UsageError(f"worst must be from 1 to {defaults.WORST_HELD}, found {self.worst!r}")

    @property
    def shown(self) -> tuple[str, ...]:
        """The columns that are shown."""
        return tuple(dict.fromkeys(checked_names("show", self.show)))


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


@group
class StatisticsOptions:
    """How statistics are made.

    Standard errors are clustered: pairs with the same `prompt_id` are one cluster. A pair without
    one is taken as independent of all others.
    """

    ASKED_BY: ClassVar[Option] = Option(
        "--statistics",
        kinds.FLAG,
        "Also intervals, baselines, calibration, length and findings. Pairs of one prompt_id "
        "are taken as one sample, pairs without it as independent.",
        calls=("evaluate",),
    )

    _: KW_ONLY
    level: float = option(
        "--level",
        kinds.NUMBER,
        "Of the intervals. Asks for statistics, as do the next three.",
        default=defaults.CONFIDENCE_LEVEL,
        varied={"compare": "Of the intervals; a p-value below 1 - level is a difference shown."},
    )
    judge: str | tuple[str, ...] = option(
        "--judge",
        kinds.COLUMNS,
        "A judge's score of chosen less rejected, or the two scores, chosen first.",
        default=(),
        calls=("evaluate",),
    )
    weights: Mapping[Any, float] = option(
        "--weight",
        Kind("numbers", "SUBSET=NUMBER", repeats=True),
        "What a subset of --by counts in the weighted mean; of several columns "
        "VALUE,VALUE=NUMBER. Repeatable, for every subset.",
        default=NOTHING,
        calls=("evaluate",),
    )
    sections: str | None = option(
        "--sections",
        Kind("text", "BENCHMARK"),
        "Score the sections of rewardbench, or rewardbench-with-prior-sets, by --by.",
        calls=("evaluate",),
        default=None,
    )

    def __post_init__(self) -> None:
        if not (isinstance(self.level, float) and 0.0 < self.level < 1.0):
            raise UsageError(f"level must be above 0 and below 1, found {self.level!r}")
        if len(self.judge_columns) > 2:  # noqa: PLR2004  a gap, or two scores
            raise UsageError(f"judge must be one column or two, found {self.judge!r}")
        check_benchmark(self.sections)

    @property
    def judge_columns(self) -> tuple[str, ...]:
        """The columns of the judge's scores."""
        return checked_names("judge", self.judge)

    def within(self, columns: Collection[str], by: Sequence[str]) -> StatisticsOptions:
        """Return the same for these columns and subsets: what has commas is taken apart."""
        weights = self.weights
        if len(by) > 1:
            weights = {
                tuple(key.split(",")) if isinstance(key, str) else key: weight
                for key, weight in weights.items()
            }
        judge = split_names(self.judge_columns, columns)
        return replace(self, judge=judge, weights=weights)


@group
class Gates:
    """Marks that figures must reach. A run that misses one still prints and writes its result."""

    _: KW_ONLY
    under: Mapping[str, float] = option(
        "--fail-under",
        kinds.NUMBERS,
        "Exit code 4 if a figure is smaller, after all is printed and written. Names are "
        "TRL's (rewards/accuracies) or the library's (reward_accuracy, advantage/longer, macro). "
        "Repeatable.",
        default=NOTHING,
        varied={
            "compare": "Exit code 4 if B - A of a figure is smaller (reward_accuracy, loss), "
            "after all is printed and written. Repeatable."
        },
    )
    over: Mapping[str, float] = option(
        "--fail-over",
        kinds.NUMBERS,
        "The same if a figure is larger (loss, n_invalid). Repeatable.",
        default=NOTHING,
    )
    by_interval: bool = option(
        "--fail-on-interval",
        kinds.FLAG,
        "Compare the end of the interval that is nearer to failing, not the value.",
        default=False,
    )
    no_verdict: bool = option(
        "--fail-on-no-verdict",
        kinds.FLAG,
        "Exit code 4 if the policies cannot be compared, or no test can be made.",
        default=False,
        calls=("compare",),
    )


_READ: Final = {"pairs": Pairs, "reference": Reference, "contract": Contract, "loss": Objective}
_RUN: Final = {"on_invalid": OnInvalid, "outputs": Outputs, "execution": Execution}
_GROUPED: Final = {"by": Subsets, "batches": Batches}
_SURE: Final = {"statistics": StatisticsOptions}

CALLS: Final[Mapping[str, Mapping[str, type[Any]]]] = MappingProxyType(
    {
        "check": _READ | _RUN,
        "evaluate": _READ | _GROUPED | _SURE | _RUN | {"gates": Gates},
        "sweep": _READ | _GROUPED | _RUN,
        "score": _READ | _GROUPED | {"scored": Scored} | _RUN | {"gates": Gates},
        "convert": {"pairs": Pairs, "outputs": Outputs, "execution": Execution},
        "compare": _READ | {"by": Subsets} | _SURE | _RUN | {"gates": Gates},
    }
)
"""Command to its groups of options, by the parameter of the call."""
