from .calls import CALLS as CALLS
from .data import Contract as Contract, Pairs as Pairs, Reference as Reference
from .figures import (
    Batches as Batches,
    BestOf as BestOf,
    Gates as Gates,
    Objective as Objective,
    StatisticsOptions as StatisticsOptions,
    Subsets as Subsets,
)
from .running import Execution as Execution
from .selecting import Selection as Selection
from .texts import Models as Models
from .writing import (
    OnInvalid as OnInvalid,
    Outputs as Outputs,
    Scored as Scored,
)
