"""Several policies on the same pairs: is one better, where, and by how much.

`compare` lives here. Its figures are over the pairs that all sides have and that are valid.
"""

from dpo_pipeline.faces import face

__getattr__, __dir__ = face(__name__, __file__)
