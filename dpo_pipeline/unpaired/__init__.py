"""What is computed of completions that stand one a row, for unpaired and listwise losses.

Sums of an unpaired loss, which an evaluation carries with its own; prompts brought together for a
listwise one; and the result. This room reads no column of a pair.
"""

from dpo_pipeline.faces import face

__getattr__, __dir__ = face(__name__, __file__)
