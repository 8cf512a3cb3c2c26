"""Rows as a contract wants them: lists unfolded, completions paired; `convert` writes them.

It never judges a value, and holds no more rows than those of the prompts that it works on.
"""

from dpo_pipeline.faces import face

__getattr__, __dir__ = face(__name__, __file__)
