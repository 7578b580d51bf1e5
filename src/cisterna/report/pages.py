"""HTML pages from the templates in ``templates/``. A page needs no other file, and values in it are escaped."""

from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """The page that a template makes of values; jinja2.UndefinedError for a value that the template misses."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cisterna.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)
