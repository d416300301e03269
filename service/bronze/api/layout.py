"""What all pages of the API share: their layout, their style sheet, and the headers that they are served with."""

import base64
import hashlib
from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bronze import __version__

#: Where the API itself serves docs/runbook.md.
RUNBOOK_PATH = "/runbook"


def load_templates(runbook_url: str | None) -> Environment:
    """The templates. `runbook_url` is the runbook that pages link to; None is the one that the API serves."""
    templates = Environment(
        loader=PackageLoader("bronze.api"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= {
        "css": Markup(templates.get_template("page.css").render()),  # noqa: S704  a file of this package
        "runbook_url": runbook_url or RUNBOOK_PATH,
        "version": __version__,
        "logged_in": "",  # the principal of a session
    }
    return templates


def security_headers(templates: Environment) -> Mapping[str, str]:
    """The headers under which a browser runs no script and loads nothing: only the style sheet in the page is used."""
    css = str(templates.globals["css"])
    style = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return {
        "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{style}'; img-src data:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
