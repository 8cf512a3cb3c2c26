"""Every default and every limit, once. Imports nothing, so that `--help` can read it cheaply."""

from __future__ import annotations

from typing import Final, Literal, get_args

BETA: Final = 0.1
"""KL strength of the DPO loss, dimensionless. The default of TRL, torchtune and the DPO authors."""

LOSS_NAME: Final = "sigmoid"
"""The DPO loss."""

LOSS_NAMES: Final = (
    "sigmoid",
    "sigmoid_norm",
    "robust",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
    "dpop",
    "rdpo",
    "cpo",
    "cpo_hinge",
    "simpo",
    "alphapo",
    "orpo",
    "orpo_odds_ratio",
    "sft",
    "aot",
    "aot_unpaired",
    "kto_pair",
)
"""The losses of `loss_catalogue`, which a test compares: what a shell completes."""

DIALECT_NAMES: Final = ("trl", "dpo-paper", "rewardbench")
"""Systems whose conventions can be asked for."""

MAX_LOGP: Final = 0.0
"""Largest log-probability accepted, in nats. bf16 exports can reach +0.125."""

BF16_EXCESS: Final = 0.125
"""Largest log-probability that a bf16 export was seen to have, in nats."""

LOGP_LIMIT: Final = 2.0**22
"""Largest magnitude of a log-probability or a margin that is summed, in nats (4,194,304)."""

WIDE_LIMIT: Final = 2.0**50
"""Largest magnitude of a loss or reward that is summed where a loss can be larger (1.1e15)."""

BATCH_SIZE: Final = 64
"""Rows of a batch, where batches are asked for by their file alone."""

MAX_BATCHES_HELD: Final = 1_000_000
"""Batches that a result holds in memory; beyond it they go to a file."""

MAX_SUBSETS: Final = 10_000
"""Groups of `by` that a result holds."""

MAX_SUBSETS_WITH_STATISTICS: Final = 500
"""The same where each has statistics of its own."""

SHARD_ROWS: Final = 4_000_000
"""Rows that one query evaluates: bounds memory, and is the step of progress and of a stop."""

COUPLED_SHARD_ROWS: Final = 262_144
"""Rows that are in memory at a time for a loss that depends on the other pairs of a batch."""

COUPLED_SHARD_BYTES: Final = 64 * 2**20
"""Bytes of such rows, as they are in the input before compression."""

MAX_FILE_ROWS: Final = 4_000_000_000
"""Rows of one input file. Polars numbers the rows of a scan with 32 bits."""

ENGINES: Final = ("local", "ray")
"""Where the work can be done."""

REQUESTS_AT_A_TIME: Final = 16
"""Footers of objects that are asked for together."""

OUTPUT_ROWS_PER_GROUP: Final = 65_536
"""Rows of a row group of scored and invalid pairs: fixed, so that bytes do not follow the input."""

WIDE_ROW_BYTES: Final = 512
"""Average bytes of a row, in the input and before compression, from which it counts as long."""

WIDE_ROWS_PER_GROUP: Final = 4_096
"""Rows of a row group where rows are long: it is in memory as a whole."""

SINK_CHUNK_ROWS: Final = 16_384
"""Rows that the engine hands to a sink at a time. It lets some thirty such chunks wait."""

SINK_CHUNK_BYTES: Final = 2 * 2**20
"""Bytes of such a chunk where rows are long."""

ZSTD_LEVEL: Final = 1
"""Of all Parquet outputs: columns of numbers get no smaller at 3, for a seventh more CPU."""

OFFENDERS_SHOWN: Final = 5
"""Offending rows that a report lists for each rule."""

AVERAGED_LOGP_FLOOR: Final = -10.0
"""If no log-prob of a dataset is below this, in nats, they look averaged over tokens."""

TOKEN_SUM_TOLERANCE: Final = 0.01
"""By how much of it a sum may differ from that of its tokens: eight bits give 0.4%."""

TOKEN_SUM_SLACK: Final = 0.1
"""The same in nats, for sums near 0."""

CONFIDENCE_LEVEL: Final = 0.95
"""Of every interval."""

WILSON_FROM: Final = 100
"""Successes and failures from which a rate has Wilson's interval; Jeffreys' below."""

SAME_REFERENCE: Final = 1e-3
"""Relative difference up to which two reference log-probs are the same but for rounding."""

MID_P_FROM: Final = 100
"""Pairs (or clusters) that differ from which a comparison needs no exact test."""

TIES_DIFFER_FROM: Final = 0.01
"""Share of pairs by which the ties of two policies differ from which a verdict tells of them."""

POWER: Final = 0.8
"""Chance with which the smallest effect that a comparison can find is found."""

MOST_FLIPS: Final = 1_000
"""Gains and losses up to which the test of clusters adds up all ways that they could fall."""

BOOTSTRAP_REPLICATES: Final = 2_000
"""Replicates of a bootstrap."""

BOOTSTRAP_SEED: Final = 0
"""Where its random numbers start."""

JACKKNIFE_FROM: Final = 10
"""Groups from which a jackknife has an interval; the spread of fewer is too uncertain."""

CALIBRATION_BINS: Final = 15
"""Bins of equal mass of a calibration error, the usual number."""

STATISTICS_ROWS: Final = 524_288
"""Rows that are in memory at a time when statistics are gathered."""

CLUSTERS_HELD: Final = 20_000
"""Prompts (or pairs) that an error is made from one by one; more are put into bags."""

BAGS: Final = 1_024
"""Bags of prompts. The standard error made from them is itself uncertain by 2.2%."""

COURSE_POINTS: Final = 500
"""Points of the course of loss over the rows, at most."""

ROWS_SHOWN: Final = 20
"""Pairs that a report lists."""

REPEATS_HELD: Final = 65_536
"""Hashes of pairs that are kept to find equal ones; of more, a fixed share."""

JUDGE_CELLS: Final = 500_000
"""Cells of a judge's score and a margin from which the score is binned too."""

DISPLACED_FROM: Final = 0.5
"""Share of chosen completions that got less likely from which it is a finding: most of them."""

LENGTH_CORRELATION_FROM: Final = 0.3
"""Correlation of margin and length difference from which it is a finding: 9% of the variance."""

MISLABELLED_FROM: Final = 0.05
"""Share of flipped labels from which it is a finding; people disagree on more than that."""

IMPRECISE_FROM: Final = 0.05
"""Share of margins within a step of the log-probs' number format from which it is a finding."""

REPEATED_FROM: Final = 0.01
"""Share of pairs that repeat another from which it is a finding; a few may be chance."""

FEW_PAIRS: Final = 300
"""Pairs below which intervals of means are rough: a few hundred (arXiv 2503.01747)."""

FEW_CLUSTERS: Final = 50
"""Prompts below which a spread between them is rough."""

OnInvalid = Literal["raise", "exclude"]
OnInvalidJob = Literal["raise", "exclude", "quarantine"]
ON_INVALID: Final[tuple[str, ...]] = get_args(OnInvalid)
ON_INVALID_JOB: Final[tuple[str, ...]] = get_args(OnInvalidJob)
