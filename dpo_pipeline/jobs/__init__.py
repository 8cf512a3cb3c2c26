"""Work that several processes share, at any time and place: `split`, `run` and `merge`.

A job is an executor whose tasks ran in other processes: the plan of the call is made again, and
gets the results of its shards from files. This room computes nothing of a pair.
"""

from dpo_pipeline.faces import face

__getattr__, __dir__ = face(__name__, __file__)
