from .binding import Binding as Binding, bind as bind
from .compiling import RuleSet as RuleSet, Schema as Schema
from .listing import (
    Offences as Offences,
    Places as Places,
    invalid_pairs as invalid_pairs,
    listed as listed,
    numbered as numbered,
    offences as offences,
)
from .model import PreferencePairs as PreferencePairs, rules_of as rules_of
