from .job_plan import JobPlan as JobPlan
from .merging import merge as merge
from .shard_running import ShardRun as ShardRun, run as run
from .splitting import split as split
