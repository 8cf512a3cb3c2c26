"""What is computed of a pair: losses, rewards, and the objective that says which.

Pure expression functions, the catalogue that describes them, and the dialects of other systems.
`dpo_loss` is the function of the specification: lists in, dictionary out.
This room reads no data and never judges whether a pair is valid.
"""

from dpo_pipeline.faces import face

__getattr__, __dir__ = face(__name__, __file__)
