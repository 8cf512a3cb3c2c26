"""How rewards rank the completions of a prompt: `rank`.

A prompt is one sample. Rows are read once, the whole prompts of a piece at a time, and become sums.
"""

from dpo_pipeline.faces import face

__getattr__, __dir__ = face(__name__, __file__)
