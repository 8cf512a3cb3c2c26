from .reference_tables import option_table as option_table, reference_page as reference_page
from .tables_out import published as published
