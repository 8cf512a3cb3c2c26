from .reference_tables import option_table as option_table, reference_page as reference_page
from .table_contracts import published as published
