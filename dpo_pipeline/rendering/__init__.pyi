from .cells import cell as cell
from .markup import (
    as_csv as as_csv,
    as_html as as_html,
    as_latex as as_latex,
    as_markdown as as_markdown,
    with_minus as with_minus,
)
from .text import as_screen as as_screen, as_text as as_text, fitted as fitted
