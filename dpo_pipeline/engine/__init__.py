"""Where tasks run (in this process, or on Ray), how a run tells of its progress, and how it stops.

An engine never changes what is computed.
"""

from dpo_pipeline.faces import face

__getattr__, __dir__ = face(__name__, __file__)
