from .binding import (
    Binding as Binding,
    bind as bind,
    layout_error as layout_error,
    truth as truth,
)
from .invalid_rows import (
    Offences as Offences,
    Places as Places,
    invalid_pairs as invalid_pairs,
    listed as listed,
    numbered as numbered,
    offences as offences,
    why_refused as why_refused,
)
from .model import Completions as Completions, PreferencePairs as PreferencePairs
from .rules import Clean as Clean, RuleSet as RuleSet, Schema as Schema
from .value_rules import rules_of as rules_of
