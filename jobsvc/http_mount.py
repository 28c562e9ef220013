"""The API below a prefix, where it is one application of several behind a server that is not its own.

The server says in `root_path` where the application is mounted, and leaves the prefix in `path`. Inside,
every path is as it is documented: the prefix is taken off where a request comes in, and put before what the
service answers as an address of its own. The page asks with relative addresses, so its own address ends with
a slash.
"""

from __future__ import annotations

from contextvars import ContextVar

from starlette.responses import RedirectResponse
from starlette.types import Scope

_prefix: ContextVar[str] = ContextVar("prefix", default="")


def mounted(path: str) -> str:
    """This path of the API as whoever made the request now being answered would ask for it."""
    return _prefix.get() + path


def unmounted(scope: Scope) -> Scope:
    """The request as if the API were alone; remembers where it is."""
    prefix: str = scope["root_path"].rstrip("/")
    path: str = scope["path"]
    _prefix.set(prefix)
    if path == prefix or path.startswith(f"{prefix}/"):
        path = path[len(prefix) :]
    return {**scope, "path": path, "root_path": ""}


def redirect_to_page() -> RedirectResponse:
    """For the prefix alone, without the slash."""
    return RedirectResponse(mounted("/"), 307)
