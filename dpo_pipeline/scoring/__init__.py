"""Pairs with their rewards and losses: as frames, as Arrow tables, as files.

`score`, `score_parquet`, `token_kl` and `arrow_stage` live here.
"""

from dpo_pipeline.faces import face

__getattr__, __dir__ = face(__name__, __file__)
