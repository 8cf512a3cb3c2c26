"""Where pairs come from: formats, files, footers, shards, and the reference of another file.

Everything that a call can be given is opened here, and becomes a `Dataset`.
This room never judges a value and computes nothing of a pair.
"""

from dpo_pipeline.faces import face

__getattr__, __dir__ = face(__name__, __file__)
