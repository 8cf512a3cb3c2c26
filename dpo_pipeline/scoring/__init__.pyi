from .scoring_files import score_parquet as score_parquet
from .scoring_frames import arrow_stage as arrow_stage, score as score, token_kl as token_kl
