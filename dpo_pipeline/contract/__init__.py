"""What a pair must be, and which rows are not.

pandera declares the contract; its checks are compiled to Polars expressions.
This room never drops a row: it marks rows, and lists those that break rules.
"""

from dpo_pipeline.faces import face

__getattr__, __dir__ = face(__name__, __file__)
