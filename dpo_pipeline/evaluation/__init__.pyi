from .estimates import (
    ESTIMATED_FIGURES as ESTIMATED_FIGURES,
    Agreement as Agreement,
    Flips as Flips,
    Statistics as Statistics,
)
from .evaluating import (
    check as check,
    evaluate as evaluate,
    staged_batches as staged_batches,
    statistics_asked as statistics_asked,
    warn_of as warn_of,
    write_document as write_document,
)
from .evaluation_result import (
    DOCUMENT_VERSION as DOCUMENT_VERSION,
    Evaluation as Evaluation,
    Reported as Reported,
)
from .findings import SEVERITIES as SEVERITIES, Finding as Finding
from .gathering import Gathered as Gathered
from .gating import Gate as Gate, gate as gate
from .measuring import Measured as Measured, Wanted as Wanted, judge as judge, measure as measure
from .metadata import run_facts as run_facts
from .shards import (
    ShardScorer as ShardScorer,
    ShardTask as ShardTask,
    refuse_elsewhere as refuse_elsewhere,
    refuse_join as refuse_join,
)
from .sweeping import (
    Sweep as Sweep,
    needs_of as needs_of,
    objectives_of as objectives_of,
    sweep as sweep,
)
