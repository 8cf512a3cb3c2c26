"""The command line: parse, call one function of the library, print, return a code.

Results go to stdout, all else to stderr. `--help` loads no Polars.
"""

from dpo_pipeline.faces import face

__getattr__, __dir__ = face(__name__, __file__)
