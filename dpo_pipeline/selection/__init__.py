"""Which pairs of a dataset are kept, by a rule: `select`.

A rule is an expression and its description. It ranks the pairs; this room keeps the first of them,
and says what that does. No rule is called the best one.
"""

from dpo_pipeline.faces import face

__getattr__, __dir__ = face(__name__, __file__)
