"""Several policies on the same pairs: which may be the best, and how a run went step by step.

`compare` of three policies or more lives here; that of two is in `comparison`.
"""

from dpo_pipeline.faces import face

__getattr__, __dir__ = face(__name__, __file__)
