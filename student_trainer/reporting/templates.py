"""Where HTML pages are made: one look for all of them."""

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def page_template(name: str) -> Template:
    """A page that extends base.html; texts are escaped, and a name that nobody set is an error."""
    loader = PackageLoader("student_trainer.reporting", ".")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template(name)
