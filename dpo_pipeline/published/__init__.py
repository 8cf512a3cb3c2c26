"""What is handed to other systems: the contracts and JSON Schemas of `schemas/`.

They are made from the declarations of the other rooms, and never edited by hand.
"""

from dpo_pipeline.faces import face

__getattr__, __dir__ = face(__name__, __file__)
