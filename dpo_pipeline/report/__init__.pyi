from .pages import (
    charts_of as charts_of,
    page_of as page_of,
    publish_page as publish_page,
    write_page as write_page,
)
