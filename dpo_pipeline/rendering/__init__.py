"""The parts of a result, written for terminals, notebooks, papers and pages.

This room writes what it is given. It computes nothing, and knows no class of a result.
"""

from dpo_pipeline.faces import face

__getattr__, __dir__ = face(__name__, __file__)
