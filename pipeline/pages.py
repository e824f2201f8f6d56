"""HTML pages that need no other file, of the templates in `pipeline/templates`."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def draw_page(template: str, filters: dict[str, Any] | None = None, **values: Any) -> str:
    """A page of a template.

    Args:
        template: its file name.
        filters: functions that the template calls by these names.
        values: what it shows; one that it names and is not given raises `UndefinedError`.
    """
    environment = Environment(
        loader=PackageLoader("pipeline"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters or {}
    return environment.get_template(template).render(**values)
