from .comparison import Comparison as Comparison, compare as compare
from .contract import Completions as Completions, PreferencePairs as PreferencePairs
from .engine import Progress as Progress
from .errors import (
    ArgumentError as ArgumentError,
    Cancelled as Cancelled,
    ColumnError as ColumnError,
    ContractError as ContractError,
    DataWarning as DataWarning,
    DpoPipelineError as DpoPipelineError,
    EngineError as EngineError,
    GateError as GateError,
    InvalidPairsError as InvalidPairsError,
    JoinError as JoinError,
    RefusedCheckError as RefusedCheckError,
    StorageError as StorageError,
    UsageError as UsageError,
)
from .evaluation import (
    Evaluation as Evaluation,
    Finding as Finding,
    Sweep as Sweep,
    check as check,
    evaluate as evaluate,
    gate as gate,
    sweep as sweep,
)
from .invalid_report import InvalidReport as InvalidReport
from .layouts import convert as convert
from .losses import dpo_loss as dpo_loss
from .models import logps as logps, verify_logps as verify_logps
from .options import (
    Batches as Batches,
    BestOf as BestOf,
    Contract as Contract,
    Execution as Execution,
    Gates as Gates,
    Models as Models,
    Objective as Objective,
    OnInvalid as OnInvalid,
    Outputs as Outputs,
    Pairs as Pairs,
    Reference as Reference,
    Scored as Scored,
    Selection as Selection,
    StatisticsOptions as StatisticsOptions,
    Subsets as Subsets,
)
from .plan import Plan as Plan, dry_run as dry_run
from .policies import Leaderboard as Leaderboard
from .published import explain as explain
from .ranking import Ranking as Ranking, rank as rank
from .scoring import (
    arrow_stage as arrow_stage,
    score as score,
    score_parquet as score_parquet,
    token_kl as token_kl,
)
from .selection import Selected as Selected, select as select
from .sources import join_reference as join_reference, read as read
from .sums import Summary as Summary

__version__: str
