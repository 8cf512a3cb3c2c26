"""Every option of the library, once: a field of a group.

A field holds its flag, its kind, its help and its default. The command line, the settings, the
environment variables, the table of options, the docstrings and the dry run walk over the fields.
Calls take groups, or their short forms: `on_invalid="exclude"` stands for `OnInvalid("exclude")`.
To add an option, add a field to its group, and use it where the call reads it.
"""

from dpo_pipeline.faces import face

__getattr__, __dir__ = face(__name__, __file__)
