from .estimates import (
    BASELINES as BASELINES,
    ESTIMATED_FIGURES as ESTIMATED_FIGURES,
    MAIN_FIGURES as MAIN_FIGURES,
    Agreement as Agreement,
    Flips as Flips,
    Intervals as Intervals,
    Statistics as Statistics,
    cells_of as cells_of,
    words_of as words_of,
)
from .evaluating import (
    Measurement as Measurement,
    MeasurementPlan as MeasurementPlan,
    check as check,
    evaluate as evaluate,
)
from .evaluation_result import (
    DOCUMENT_VERSION as DOCUMENT_VERSION,
    Evaluation as Evaluation,
    Reported as Reported,
)
from .findings import SEVERITIES as SEVERITIES, Finding as Finding, advised_once as advised_once
from .gathering import Gathered as Gathered
from .gating import (
    GATED as GATED,
    SUMMED as SUMMED,
    Gated as Gated,
    Mark as Mark,
    check_gates as check_gates,
    check_gates_asked as check_gates_asked,
    gate as gate,
    needs_statistics as needs_statistics,
)
from .measuring import Measured as Measured, work_of as work_of
from .planning import (
    Documents as Documents,
    Groups as Groups,
    check_report as check_report,
    checked_objective as checked_objective,
    inputs_of as inputs_of,
    max_logp_of as max_logp_of,
    paths_of as paths_of,
    refuse_completions as refuse_completions,
    run_facts as run_facts,
    staged_batches as staged_batches,
    warn_of as warn_of,
)
from .shards import (
    FoundOffences as FoundOffences,
    ShardScorer as ShardScorer,
    ShardTask as ShardTask,
)
from .sweeping import Sweep as Sweep, sweep as sweep
