from .pair_writer import PartTask as PartTask, part_tasks as part_tasks
from .part_outputs import PartOutputs as PartOutputs
from .scoring_files import (
    ScorePlan as ScorePlan,
    carried_columns as carried_columns,
    check_outside as check_outside,
    check_written as check_written,
    score_parquet as score_parquet,
)
from .scoring_frames import (
    arrow_stage as arrow_stage,
    score as score,
    token_kl as token_kl,
)
