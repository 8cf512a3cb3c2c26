from .selecting import SelectionPlan as SelectionPlan, select as select
from .selection_result import Selected as Selected
from .selection_rules import RULES as RULES, Rule as Rule
