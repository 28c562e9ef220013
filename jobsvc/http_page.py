"""The page for people at `/`: files of `web/`, served as they are.

They are read once, when a replica starts, and hold no data; what the page shows it asks of the API. So they
need no token: the page asks for one if the API does. The policy allows nothing from elsewhere, and no script
in the page itself, so that what a job carries in its texts can never run.
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent / "web"
INDEX = "index.html"
PREFIX = "/web/"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


class Asset(NamedTuple):
    """One file, as it is sent."""

    kind: str
    data: bytes
    packed: bytes
    etag: str


def is_page(path: str) -> bool:
    """True for what needs no token: the page without any data."""
    return path == "/" or path.startswith(PREFIX)


def read_assets(folder: Path = FOLDER) -> dict[str, Asset]:
    """name -> file, of all that the page may ask for."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in TYPES:
            data = path.read_bytes()
            etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
            found[path.name] = Asset(TYPES[path.suffix], data, gzip.compress(data, 9, mtime=0), etag)
    return found


def install_web_page(app: Starlette) -> None:
    """Serve the page at `/`, and its files below `/web/`."""
    assets = read_assets()

    async def page(request: Request) -> Response:
        return _answer(request, assets[INDEX])

    async def file(request: Request) -> Response:
        asset = assets.get(request.path_params["name"])
        if asset is None:
            raise HTTPException(404, "the page has no such file")
        return _answer(request, asset)

    app.add_route("/", page, include_in_schema=False)
    app.add_route(PREFIX + "{name}", file, include_in_schema=False)


def _answer(request: Request, asset: Asset) -> Response:
    headers = {**HEADERS, "ETag": asset.etag}
    if asset.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(asset.packed, 200, {**headers, "Content-Encoding": "gzip"}, asset.kind)
    return Response(asset.data, 200, headers, asset.kind)
