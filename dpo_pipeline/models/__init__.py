"""From texts and models to log-probs: tokens by TRL's rules, scored in parts that can be resumed.

Needs the extra `models` (torch, transformers), which no other room knows of.
This room computes no reward and judges no value.
"""

from dpo_pipeline.faces import face

__getattr__, __dir__ = face(__name__, __file__)
