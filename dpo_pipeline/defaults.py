"""Every default and every limit, once. Imports nothing, so that `--help` can read it cheaply."""

from __future__ import annotations

from typing import Final, Literal, get_args

BETA: Final = 0.1
"""KL strength of the DPO loss, dimensionless. The default of TRL, torchtune and the DPO authors."""

LOSS_NAME: Final = "sigmoid"
"""The DPO loss."""

LOSS_NAMES: Final = (
    *("sigmoid", "sigmoid_norm", "robust", "hinge", "ipo", "exo_pair", "nca_pair", "bco_pair"),
    *("sppo_hard", "apo_zero", "apo_down", "discopop", "dpop", "rdpo"),
    *("odpo", "soft_labels", "wpo"),
    *("cpo", "cpo_hinge", "simpo", "alphapo", "orpo", "orpo_odds_ratio", "sft"),
    *("aot", "aot_unpaired", "kto_pair"),
)
"""Names of `losses.catalogue.LOSSES`, for shell completion. A test keeps the two equal."""

COMPLETION_LOSS_NAMES: Final = ("kto", "apo_zero_unpaired", "plackett_luce", "infonca", "nca")
"""The same of `losses.catalogue.COMPLETION_LOSSES`."""

DIALECT_NAMES: Final = ("trl", "dpo-paper", "rewardbench", "halos")
"""The dialects: systems whose conventions `dialect` takes."""

MAX_LOGP: Final = 0.0
"""Largest log-probability accepted, in nats. bf16 exports can reach +0.125."""

BF16_EXCESS: Final = 0.125
"""Largest log-probability that a bf16 export was seen to have, in nats."""

SCORES_ABOVE: Final = 0.25
"""Columns that may be larger, in nats, hold scores of a reward model and no log-probs."""

LOGP_LIMIT: Final = 2.0**22
"""Largest magnitude of a log-probability or a margin that is summed, in nats (4,194,304)."""

WIDE_LIMIT: Final = 2.0**50
"""Largest magnitude of a loss or reward that is summed where a loss can be larger (1.1e15)."""

BATCH_SIZE: Final = 64
"""Rows of a batch, if only the file of batch means is given."""

MAX_BATCHES_HELD: Final = 1_000_000
"""Batches that a result holds in memory; beyond it they go to a file."""

MAX_SUBSETS: Final = 10_000
"""Groups of `by` that a result holds."""

MAX_SUBSETS_WITH_STATISTICS: Final = 500
"""The same with statistics."""

LEAST_KNOWN: Final = 1e-12
"""Unit of the last decimal that is known of a mean, in nats: twice half a quantum is 9.1e-13."""

SHARD_ROWS: Final = 4_000_000
"""Rows that one query evaluates: bounds memory, and is the step of progress and of a stop."""

COUPLED_SHARD_ROWS: Final = 262_144
"""Rows that are in memory at a time for a loss that depends on the other pairs of a batch."""

COUPLED_SHARD_BYTES: Final = 64 * 2**20
"""Uncompressed bytes of such rows in the input."""

PARQUET_ENDINGS: Final = (".parquet", ".pq", ".parq")
"""Endings of Parquet files, in any case."""

MAX_FILE_ROWS: Final = 4_000_000_000
"""Rows of one input file. Polars numbers the rows of a scan with 32 bits."""

OWN_FOOTER_BYTES: Final = 2**17
"""Size of the largest footer that is read without pyarrow, whose import takes longer, and 55 MB."""

OWN_FOOTERS: Final = 4
"""Files of a dataset whose footers are read without pyarrow: for more, its import pays."""

ENGINES: Final = ("local", "ray")
"""Where the work can be done."""

REQUESTS_AT_A_TIME: Final = 16
"""Footers of objects that are asked for together."""

OUTPUT_ROWS_PER_GROUP: Final = 65_536
"""Rows of a row group of scored and invalid pairs: fixed, so that bytes do not follow the input."""

WIDE_ROW_BYTES: Final = 512
"""Average uncompressed bytes of an input row from which rows count as wide."""

WIDE_ROWS_PER_GROUP: Final = 4_096
"""Rows of a row group if rows are wide: a whole group is held in memory."""

SINK_CHUNK_ROWS: Final = 16_384
"""Rows that the engine hands to a sink at a time. It lets some thirty such chunks wait."""

SINK_CHUNK_BYTES: Final = 2 * 2**20
"""Bytes of such a chunk if rows are wide."""

RULE_NAMES: Final = ("smallest_gap", "nearest_tie", "largest_margin", "easiest", "random")
"""Rules by which pairs are selected."""

COMPRESSIONS: Final = ("zstd", "snappy", "none")
"""How scored pairs can be compressed; the first is the default."""

ZSTD_LEVEL: Final = 1
"""Of all Parquet outputs. Level 3 costs a seventh more CPU and makes numbers no smaller."""

OFFENDERS_SHOWN: Final = 5
"""Offending rows that a report lists for each rule."""

AVERAGED_LOGP_FLOOR: Final = -10.0
"""If no log-prob of a dataset is below this, in nats, they look averaged over tokens."""

TOKEN_SUM_TOLERANCE: Final = 0.01
"""Largest relative difference of a log-prob from the sum of its tokens; bf16 gives 0.4%."""

TOKEN_SUM_SLACK: Final = 0.1
"""Added to that difference, in nats, for sums near 0."""

CONFIDENCE_LEVEL: Final = 0.95
"""Confidence level of all intervals."""

COIN: Final = 0.5
"""Accuracy of a coin toss."""

VERDICT_UP_TO: Final = 0.1
"""No verdict if a larger share of the pairs is invalid, or contradicts other pairs."""

WILSON_FROM: Final = 100
"""Successes and failures from which a rate has Wilson's interval; Jeffreys' below."""

SAME_REFERENCE: Final = 1e-3
"""Relative difference up to which two reference log-probs count as equal."""

MID_P_FROM: Final = 100
"""From so many differing pairs (or clusters), a comparison needs no exact test."""

TIES_DIFFER_FROM: Final = 0.01
"""Difference of two tie rates from which the verdict mentions it."""

POWER: Final = 0.8
"""Power at which a comparison states its smallest detectable effect."""

MOST_FLIPS: Final = 1_000
"""Gains plus losses up to which the sign-flip test of clusters is exact."""

FLIPS_TOLD_FROM: Final = 50
"""Prompts from which the sign-flip test states its smallest effect, if prompts repeat."""

BOOTSTRAP_REPLICATES: Final = 2_000
"""Replicates of a bootstrap."""

FLIPS: Final = 4_999
"""Flips of signs that test many policies together."""

BETA_FACTORS: Final = (0.125, 0.25, 0.5, 2.0, 4.0, 8.0)
"""What the betas that `compare` tries for each policy are, times the one that was given."""

OPTIMISM_REPLICATES: Final = 1_000
"""Replicates of the bootstrap that tells how lucky a winner was."""

BOOTSTRAP_SEED: Final = 0
"""Seed of its random numbers."""

JACKKNIFE_FROM: Final = 10
"""Groups that a jackknife interval needs; the spread of fewer is too uncertain."""

CALIBRATION_BINS: Final = 15
"""Bins of equal mass of a calibration error, the usual number."""

STATISTICS_ROWS: Final = 524_288
"""Rows that are in memory at a time when statistics are gathered."""

GATHERED_ROWS: Final = 1_048_576
"""Rows of files that are read at a time for them: shorter runs straddle more row groups."""

PARTS_HELD: Final = 4
"""Gathered tables of so many rows that are merged at a time: several cost little more than two."""

PAIRED_ROWS: Final = 65_536
"""Completions that pairs are made of at a time, and those of the last prompt among them."""

MOST_DRAWN: Final = 64
"""Largest n of a best of n."""

PAIRINGS: Final = ("all", "best-worst", "best-rest", "adjacent")
"""How pairs are made of the completions of a prompt."""

ROWS_IN_STEP: Final = 262_144
"""Rows of tables that are read side by side at a time: half as many take half the memory."""

SHARD_ROWS_IN_STEP: Final = 1_048_576
"""Rows that one query reads for those who take them slowly, or side by side."""

RUN_BYTES: Final = 512 * 2**20
"""Uncompressed bytes of such rows in the input, if rows are wide."""

JOINED_ROWS: Final = 2_097_152
"""Rows of all tables that a join holds in memory; more are parted by their keys on disk."""

JOINED_BYTES: Final = 256 * 2**20
"""Bytes of a reference in another order, or of its keys, that a join holds; more go to disk."""

CLUSTERS_HELD: Final = 20_000
"""Clusters (prompts or pairs) that are held one by one; more are hashed into bags."""

PROMPTS_AHEAD: Final = 8 * CLUSTERS_HELD
"""First rows of a shard that tell whether it has more prompts than that."""

BAGS: Final = 1_024
"""Bags of clusters. The standard error made from them is itself uncertain by 2.2%."""

COURSE_POINTS: Final = 500
"""Most points of the curve of loss over rows."""

WORST_HELD: Final = 100
"""Pairs with the lowest margins, and flips of each kind, that are kept: the most that are shown."""
WORST_OF_SUBSET: Final = 5
"""Pairs with the lowest margins of a subset that are kept."""
SUBSETS_HELD: Final = 1_000
"""Subsets of which such pairs are kept; of more, none are."""
ROWS_SHOWN: Final = 20
"""Pairs that a report lists."""

KEYS_HELD: Final = 524_288
"""Hashes of `pair_id` held to find repeated ones; of more pairs, a share is held."""

NEIGHBOURS_ROWS: Final = 65_536
"""Rows at the start of a dataset that are compared with the reference of their neighbours."""

SUMMED_CHUNK_ROWS: Final = 32_768
"""Rows that the engine sums at a time."""

SENSE: Final = ("sample", "all")
"""Which pairs are looked at for what no two models give; the first is the default."""

SENSE_WHOLE: Final = 1_000_000
"""Rows at the start of a dataset that are all looked at for what no two models give."""

SENSE_STEP: Final = 4_000_000
"""Of each further so many rows, the first `SENSE_ROWS` are looked at."""

SENSE_ROWS: Final = 65_536
"""Rows of a sample, in whole pages of Parquet about."""

SENSE_FEWEST: Final = 8
"""Pairs from which on the reference of other rows is looked for; it is then told if it is clear."""

SENSED_PAIRS: Final = 2**18
"""About so many of more pairs show whether the log-probs of a comparison make sense."""

SENSE_FROM: Final = 50
"""Pairs from which the spread of log-probs is looked at; that of fewer is chance."""

REPEATS_HELD: Final = 65_536
"""Hashes of pairs held to find repeats; of more pairs, a share is held."""

JUDGE_CELLS: Final = 500_000
"""Most cells of a judge's gap and a binned margin; beyond, the gap is binned too."""

DISPLACED_FROM: Final = 0.5
"""A finding if a larger share of chosen completions got less likely."""

LENGTH_CORRELATION_FROM: Final = 0.3
"""A finding if margin and length difference correlate more (this is 9% of the variance)."""

MISLABELLED_FROM: Final = 0.05
"""A finding if a larger share of labels is flipped; people disagree on more."""

IMPRECISE_FROM: Final = 0.05
"""A finding if this share of margins is within a step of the log-probs' number format."""

MANY_TIES_FROM: Final = 0.05
"""A finding if a larger share of pairs are ties."""

CONTRADICTORY_FROM: Final = 0.001
"""A finding if this share of pairs stands there with chosen and rejected exchanged too."""

REPEATED_FROM: Final = 0.01
"""A finding if this share of pairs repeats another; a few may be chance."""

FEW_PAIRS: Final = 300
"""With fewer pairs, intervals of means are rough (arXiv 2503.01747)."""

FEWEST_CLUSTERS: Final = 10
"""Prompts, or pairs without prompts, from which a subset takes part in the test of differences."""

FEW_CLUSTERS: Final = 50
"""With fewer prompts, the spread between them is rough."""

OnInvalid = Literal["raise", "exclude"]
OnInvalidJob = Literal["raise", "exclude", "quarantine"]
ON_INVALID: Final[tuple[str, ...]] = get_args(OnInvalid)
ON_INVALID_JOB: Final[tuple[str, ...]] = get_args(OnInvalidJob)

MAX_LENGTH: Final = 1024
"""Longest prompt and completion that a model scores, in tokens; TRL's default."""

TRAINERS: Final = ("trl",)
"""Trainers whose averages over steps can be shown."""

TRAINER_BATCH_SIZE: Final = 8
"""Pairs of a batch on each process, where none is given: transformers' default."""

DTYPES: Final = ("auto", "float32", "bfloat16", "float16")
"""Types that weights are loaded in; `auto` is that in which they are stored."""

BATCH_TOKENS: Final = 8192
"""Tokens of a batch of texts, padding included."""

ROWS_OF_A_PART: Final = 1024
"""Rows of texts that are scored before they are written."""

BENCHMARK_NAMES: Final = ("rewardbench", "rewardbench-with-prior-sets")
"""Benchmarks whose sections can be scored."""
