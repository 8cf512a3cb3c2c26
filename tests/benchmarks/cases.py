"""The table of what is measured, on which data, against what, and how fast it should be.

This imports nothing that costs time or memory: the process that measures has to stay small.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from dataclasses import dataclass

HERE = os.path.dirname(os.path.abspath(__file__))
COMMAND = os.path.join(sysconfig.get_path("scripts"), "dpo-pipeline")
TEXT_BYTES = 3_000
TOKENS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A kind of benchmark file."""

    name: str
    bad_share: float = 0.0
    text_bytes: int = 0
    tokens: int = 0
    """Tokens of a completion, on average; its log-probs are lists then."""
    prompts: int = 0
    """Pairs of one prompt; token counts are there too then."""
    part: int = 1
    """It has one row for so many of the benchmark's size."""
    fixed_rows: int | None = None
    """Its rows, if they do not depend on the benchmark's size."""

    def rows(self, size: int) -> int:
        """Return its rows in a benchmark of a size."""
        return self.fixed_rows or max(1, size // self.part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """A case that another one is divided by, and the ratio that is aimed at.

    Without a case, what is aimed at are CPU seconds.
    """

    case: str | None = None
    at_most: float | None = None
    at_least: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing to measure: a function that the child calls, or a command."""

    name: str
    call: str | None = None
    argument: str | None = None
    command: tuple[str, ...] = ()
    data: Data | None = None
    against: tuple[Against, ...] = ()
    needs: tuple[str, ...] = ()
    is_ours: bool = False
    """Whether its memory must stay bounded."""
    holds_up_to: float | None = None
    """Bytes of memory that it may fill before it goes to disk."""
    times_itself: bool = False
    """Whether it returns its seconds; otherwise those of the process count."""
    runs_a_round: int = 1

    @property
    def has_sizes(self) -> bool:
        """Whether it is measured at both sizes of a benchmark."""
        return self.data is not None and self.data.fixed_rows is None

    def argv(self, source: str | None) -> list[str]:
        """Return the process to start, `source` being its data."""
        given = source or self.argument
        last = [] if given is None else [given]
        if self.call is not None:
            return [sys.executable, os.path.join(HERE, "child.py"), self.call, *last]
        return [*self.command, *last]


CLEAN = Data(name="clean")
BAD_PER_MILLE = Data(name="bad-0.1%", bad_share=0.001)
BAD_PER_CENT = Data(name="bad-5%", bad_share=0.05)
TEXT = Data(name="text", text_bytes=TEXT_BYTES, part=100)
OF_TOKENS = Data(name="tokens", tokens=TOKENS, part=5)
DUMP = Data(name="dump", tokens=TOKENS, part=500)
"""Of which the first round makes a dump as a server answers."""
PROMPTS = Data(name="prompts", prompts=4, part=4)
"""With prompts of four pairs each and token counts."""
SLICE = Data(name="slice", part=20)
TWO_FILES = Data(name="two-files", part=4)
"""Of which the first round makes the two files that are joined."""
LINES = Data(name="lines", part=20)
"""Of which the first round makes JSON lines and CSV."""
TINY = Data(name="tiny", fixed_rows=1_000)
SMALL = Data(name="small", fixed_rows=60_000)
MILLION = Data(name="million", fixed_rows=1_000_000)

FLOORS = (
    Case(name="scan", call="floors.scan", data=CLEAN),
    Case(name="bare-means", call="floors.means", data=CLEAN),
    Case(name="bare-means-by-subset", call="floors.means_by_subset", data=CLEAN),
    Case(name="bare-score", call="floors.score", data=CLEAN),
    Case(name="bare-paired-means", call="floors.paired_means", data=TWO_FILES),
    Case(name="bare-joined-means", call="floors.joined_means", data=TWO_FILES),
    Case(name="bare-rank", call="floors.rank", data=PROMPTS),
    Case(name="bare-means-one-file", call="floors.means", data=TWO_FILES),
    Case(name="bare-sums-of-tokens", call="floors.sums_of_tokens", data=OF_TOKENS),
    Case(name="bare-lines", call="floors.means_of_lines", data=LINES),
    Case(name="bare-csv", call="floors.means_of_csv", data=LINES),
    Case(name="bare-json", call="floors.parse_dump", data=DUMP),
    Case(name="bare-score-text", call="floors.score", data=TEXT),
)

OURS = (
    Case(
        name="check",
        call="ours.check",
        data=CLEAN,
        is_ours=True,
        against=(Against(case="scan", at_most=1.15),),
    ),
    Case(
        name="evaluate",
        call="ours.evaluate",
        data=CLEAN,
        is_ours=True,
        # Totals within 1.08 of bare means and 0.97 of DuckDB, and 1.15 for the intervals that an
        # evaluation makes of the same reading.
        against=(
            Against(case="bare-means", at_most=1.24),
            Against(case="duckdb-means", at_most=1.12),
            Against(case="duckdb-means-checked"),
            Against(case="pyarrow-means"),
            Against(case="pandas-means"),
        ),
    ),
    Case(
        name="evaluate-sense-of-all",
        call="ours.evaluate_sense_of_all",
        data=CLEAN,
        is_ours=True,
        against=(Against(case="bare-means", at_most=1.25),),
    ),
    Case(
        name="evaluate-by-subset",
        call="ours.evaluate_by_subset",
        data=CLEAN,
        is_ours=True,
        against=(Against(case="bare-means-by-subset", at_most=1.25),),
    ),
    Case(
        name="evaluate-batches-of-64",
        call="ours.evaluate_batches_of_64",
        data=CLEAN,
        is_ours=True,
        against=(Against(case="bare-means"),),
    ),
    Case(
        name="evaluate-batches-of-2",
        call="ours.evaluate_batches_of_2",
        data=CLEAN,
        is_ours=True,
        against=(Against(case="bare-means"),),
    ),
    Case(
        name="sweep-of-1-beta",
        call="ours.sweep_of_1_beta",
        data=CLEAN,
        is_ours=True,
        against=(Against(case="evaluate", at_most=1.05),),
    ),
    Case(
        name="sweep-of-8-betas",
        call="ours.sweep_of_8_betas",
        data=CLEAN,
        is_ours=True,
        # Seven further betas of 16 ns a pair, where an evaluation takes 55.
        against=(Against(case="evaluate", at_most=3.0),),
    ),
    Case(
        name="sweep-of-8-large-betas",
        call="ours.sweep_of_8_large_betas",
        data=CLEAN,
        is_ours=True,
        against=(Against(case="evaluate", at_most=3.0),),
    ),
    Case(
        name="evaluate-statistics",
        call="ours.evaluate_statistics",
        data=CLEAN,
        is_ours=True,
        against=(Against(case="evaluate", at_most=2.5),),
    ),
    Case(
        name="evaluate-without-prompts",
        call="ours.evaluate_without_prompts",
        data=PROMPTS,
        is_ours=True,
    ),
    Case(
        name="evaluate-prompts",
        call="ours.evaluate",
        data=PROMPTS,
        is_ours=True,
        # What intervals by prompt cost.
        against=(Against(case="evaluate-without-prompts", at_most=1.6),),
    ),
    Case(
        name="evaluate-statistics-prompts",
        call="ours.evaluate_statistics",
        data=PROMPTS,
        is_ours=True,
        against=(Against(case="evaluate-prompts", at_most=4.0),),
    ),
    Case(
        name="rank",
        call="ours.rank",
        data=PROMPTS,
        is_ours=True,
        against=(Against(case="bare-rank", at_most=1.0),),
    ),
    Case(name="evaluate-pairing", call="ours.evaluate_pairing", data=PROMPTS, is_ours=True),
    Case(
        name="compare",
        call="ours.compare",
        data=TWO_FILES,
        is_ours=True,
        against=(Against(case="bare-paired-means", at_most=0.6),),
    ),
    Case(name="evaluate-one-file", call="ours.evaluate", data=TWO_FILES, is_ours=True),
    Case(
        name="evaluate-reference",
        call="ours.evaluate_reference",
        data=TWO_FILES,
        is_ours=True,
        against=(
            Against(case="evaluate-one-file", at_most=1.7),
            Against(case="bare-means-one-file"),
            Against(case="bare-joined-means"),
        ),
    ),
    Case(
        name="evaluate-reference-shuffled",
        call="ours.evaluate_reference_shuffled",
        data=TWO_FILES,
        is_ours=True,
        # 256 MiB of keys or rows, the table that orders them, and what a scan holds.
        holds_up_to=700e6,
        against=(
            Against(case="evaluate-one-file", at_most=3.0),
            Against(case="bare-means-one-file"),
        ),
    ),
    Case(
        name="evaluate-lines",
        call="ours.evaluate_lines",
        data=LINES,
        is_ours=True,
        against=(Against(case="bare-lines", at_most=1.5),),
    ),
    Case(
        name="evaluate-csv",
        call="ours.evaluate_csv",
        data=LINES,
        is_ours=True,
        against=(Against(case="bare-csv", at_most=1.2),),
    ),
    Case(
        name="evaluate-tokens",
        call="ours.evaluate",
        data=OF_TOKENS,
        is_ours=True,
        against=(Against(case="bare-sums-of-tokens"),),
    ),
    Case(
        name="read-dump",
        call="ours.read_dump",
        data=DUMP,
        is_ours=True,
        against=(Against(case="bare-json", at_most=1.5),),
    ),
    Case(
        name="score",
        call="ours.score",
        data=CLEAN,
        is_ours=True,
        against=(
            Against(case="bare-score", at_most=1.05),
            Against(case="duckdb-score", at_most=0.6),
        ),
    ),
    Case(
        name="score-snappy",
        call="ours.score_snappy",
        data=CLEAN,
        is_ours=True,
        against=(Against(case="score"),),
    ),
    Case(
        name="select-half",
        call="ours.select_half",
        data=CLEAN,
        is_ours=True,
        against=(Against(case="score"),),
    ),
    Case(
        name="score-0.1%-bad",
        call="ours.score_quarantine",
        data=BAD_PER_MILLE,
        is_ours=True,
        against=(Against(case="bare-score", at_most=1.4),),
    ),
    Case(
        name="score-5%-bad",
        call="ours.score_quarantine",
        data=BAD_PER_CENT,
        is_ours=True,
        against=(Against(case="bare-score"),),
    ),
    Case(
        name="score-text",
        call="ours.score",
        data=TEXT,
        is_ours=True,
        against=(Against(case="bare-score-text"),),
    ),
)

PEERS = (
    Case(name="duckdb-means", call="peers.duckdb_means", data=CLEAN, needs=("duckdb",)),
    Case(
        name="duckdb-means-checked",
        call="peers.duckdb_means_checked",
        data=CLEAN,
        needs=("duckdb",),
    ),
    Case(name="duckdb-score", call="peers.duckdb_score", data=CLEAN, needs=("duckdb",)),
    Case(name="pyarrow-means", call="peers.pyarrow_means", data=CLEAN, needs=("numpy",)),
    Case(name="pandas-means", call="peers.pandas_means", data=CLEAN, needs=("pandas",)),
    Case(
        name="torch-loop-of-8",
        call="peers.torch_loop_of_8",
        data=SLICE,
        needs=("torch", "numpy"),
        against=(Against(case="evaluate", at_least=20.0),),
    ),
    Case(
        name="torch-loop-of-64",
        call="peers.torch_loop_of_64",
        data=SLICE,
        needs=("torch", "numpy"),
        against=(
            Against(case="evaluate", at_least=20.0),
            Against(case="evaluate-batches-of-64"),
        ),
    ),
)


def loss_cases(pairs: int, *, at_most: float | None) -> tuple[Case, ...]:
    """Return the cases of one length of the library call."""
    size = str(pairs)
    return (
        Case(
            name=f"numpy_loss-{size}",
            call="loss_calls.numpy",
            argument=size,
            times_itself=True,
            needs=("numpy",),
        ),
        Case(
            name=f"python_loss-{size}", call="loss_calls.python", argument=size, times_itself=True
        ),
        Case(
            name=f"dpo_loss-{size}",
            call="loss_calls.ours",
            argument=size,
            times_itself=True,
            against=(
                Against(case=f"numpy_loss-{size}", at_most=at_most),
                Against(case=f"python_loss-{size}"),
            ),
        ),
    )


LOSS_CALLS = (
    *loss_cases(64, at_most=8.0),
    *loss_cases(4_096, at_most=None),
    *loss_cases(1_000_000, at_most=1.8),
)


def imports(name: str, code: str, *against: Against) -> Case:
    """Return an interpreter that runs some code; often, as it is as short as noise is long."""
    return Case(name=name, command=(sys.executable, "-c", code), against=against, runs_a_round=3)


START_UPS = (
    imports("empty-interpreter", ""),
    imports("import-polars", "import polars", Against(case="empty-interpreter")),
    imports(
        "import-dpo_pipeline",
        "import dpo_pipeline",
        Against(case="import-polars", at_most=1.1),
        Against(case="empty-interpreter"),
    ),
    imports(
        "from-dpo_pipeline-import-evaluate",
        "from dpo_pipeline import evaluate",
        Against(case="import-polars"),
    ),
    Case(
        name="command-help",
        command=(COMMAND, "--help"),
        runs_a_round=3,
        against=(Against(at_most=0.25), Against(case="empty-interpreter")),
    ),
    Case(
        name="command-evaluate-tiny",
        command=(COMMAND, "evaluate"),
        data=TINY,
        runs_a_round=3,
        against=(Against(case="import-polars", at_most=2.6),),
    ),
)


def whole(size: str, data: Data, *statistics: Against) -> tuple[Case, ...]:
    """Return whole commands on a small set, beside what one would type instead."""
    peers = tuple(
        Case(
            name=f"{peer}-{size}",
            call=f"peers.{peer}_means",
            data=data,
            needs=(peer,),
            runs_a_round=3,
        )
        for peer in ("duckdb", "pandas")
    )
    against = tuple(Against(case=peer.name) for peer in peers)
    return (
        *peers,
        Case(
            name=f"command-evaluate-{size}",
            command=(COMMAND, "evaluate"),
            data=data,
            runs_a_round=3,
            against=against,
        ),
        Case(
            name=f"command-statistics-{size}",
            command=(COMMAND, "evaluate", "--statistics"),
            data=data,
            runs_a_round=3,
            against=(*statistics, *against),
        ),
        Case(
            name=f"command-report-{size}",
            command=(COMMAND, "evaluate", "--report", "report.html", "--overwrite"),
            data=data,
            runs_a_round=3,
            needs=("altair",),
            against=(Against(case=f"command-statistics-{size}"),),
        ),
    )


COMMANDS = (
    # 0.6 and 1.5 seconds on a machine that imports Polars in 0.17.
    *whole("1000", TINY, Against(case="import-polars", at_most=3.5)),
    *whole("60000", SMALL),
    *whole("1M", MILLION, Against(case="import-polars", at_most=8.8)),
)

GROUPS = (FLOORS, OURS, PEERS, LOSS_CALLS, START_UPS, COMMANDS)
CASES = {case.name: case for group in GROUPS for case in group}
QUICK = (
    *("check", "evaluate", "evaluate-by-subset", "sweep-of-1-beta", "score"),
    *("dpo_loss-64", "command-evaluate-tiny"),
)
"""What `--quick` measures."""


def chosen(names: list[str] | None) -> list[Case]:
    """Return the named cases and those they are divided by, in the order of the table."""
    if names is None:
        return list(CASES.values())
    wanted = set(names)
    for name in names:
        wanted |= {other.case for other in CASES[name].against if other.case is not None}
    return [case for case in CASES.values() if case.name in wanted]
