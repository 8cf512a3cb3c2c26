"""One dataset: measured, judged, and made into a result with figures, findings and gates.

`check`, `evaluate` and `sweep` live here.
This room writes no pairs and compares no policies.
"""

from dpo_pipeline.faces import face

__getattr__, __dir__ = face(__name__, __file__)
