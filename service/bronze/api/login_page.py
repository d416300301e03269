"""The page with which a browser logs in: also the answer to a browser whose request is refused for want of a key."""

from fastapi.responses import HTMLResponse
from starlette.datastructures import Headers
from starlette.types import Scope

from bronze.api.layout import load_templates, security_headers
from bronze.api.sessions import READS

LOGIN_PATH = "/login"
LOGOUT_PATH = "/logout"
PATH_CHARS_MAX = 2048


class LoginPage:
    """Renders the page."""

    def __init__(self, runbook_url: str | None) -> None:
        templates = load_templates(runbook_url)
        self._template = templates.get_template("login.html")
        self._headers = {**security_headers(templates), "Cache-Control": "no-store"}

    def show(self, status: int, path: str, problem: str = "") -> HTMLResponse:
        """The page, which leads to `path`."""
        html = self._template.render(path=local_path(path), problem=problem)
        return HTMLResponse(html, status, self._headers)


def wants_page(scope: Scope) -> bool:
    """Whether a request is that of a browser that will show the answer."""
    headers = Headers(scope=scope)
    return (
        scope["method"] in READS and "text/html" in headers.get("accept", "") and headers.get("authorization") is None
    )


def requested_path(scope: Scope) -> str:
    query = scope["query_string"].decode("latin-1")
    return f"{scope['raw_path'].decode('latin-1').partition('?')[0]}{'?' if query else ''}{query}"


def local_path(text: str) -> str:
    """The text if it is a path of the API, else `/`: browsers take two slashes, of any kind, for another site."""
    is_local = (
        text.startswith("/")
        and not text.startswith(("//", LOGIN_PATH, LOGOUT_PATH))
        and text.isascii()
        and text.isprintable()
        and "\\" not in text
        and len(text) <= PATH_CHARS_MAX
    )
    return text if is_local else "/"
