from .tables_out import published as published
