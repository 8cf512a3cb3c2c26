from .converting import convert as convert
from .opening import (
    columns_of as columns_of,
    open_rows as open_rows,
    refuse_rows_of_completions as refuse_rows_of_completions,
)
from .pairing import BETTER as BETTER, Counted as Counted, Together as Together
