"""Results as HTML: the page of an evaluation, of a comparison, and tables for notebooks.

Templates and charts, and what fills them. This room never computes a figure.
"""

from dpo_pipeline.faces import face

__getattr__, __dir__ = face(__name__, __file__)
