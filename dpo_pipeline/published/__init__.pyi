from .glossary import LEGEND as LEGEND, explain as explain
from .reference_tables import (
    dialect_tables as dialect_tables,
    loss_table as loss_table,
    needs_of as needs_of,
    option_table as option_table,
    reference_page as reference_page,
)
from .table_contracts import published as published
