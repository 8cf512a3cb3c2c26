"""Files on this machine and objects in stores: reached, locked, and published whole or not at all.

An output is written under a hidden name and gets its own name at the end of the run.
This room never looks at what a file holds.
"""

from dpo_pipeline.faces import face

__getattr__, __dir__ = face(__name__, __file__)
