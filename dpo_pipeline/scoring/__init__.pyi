from .pair_writer import PartTask as PartTask, part_tasks as part_tasks
from .scoring_files import ScorePlan as ScorePlan, score_parquet as score_parquet
from .scoring_frames import (
    arrow_stage as arrow_stage,
    score as score,
    token_kl as token_kl,
)
