"""`/docs`: the OpenAPI document as one page for people. No script, nothing from elsewhere: works offline."""

from __future__ import annotations

import html
import json
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font-family: ui-monospace, monospace; font-size: .9em }
pre { overflow-x: auto; padding: .5rem; border: 1px solid #8888 }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .2rem .6rem .2rem 0; vertical-align: top; border-bottom: 1px solid #8884 }
summary { cursor: pointer; padding: .3rem 0 }
.method { display: inline-block; min-width: 4rem; font-weight: bold }
"""


def install_page(app: FastAPI) -> None:
    """Serve the page at `/docs`."""

    async def docs(request: Request) -> Response:
        return HTMLResponse(page(app.openapi()), headers=_HEADERS)

    app.add_route("/docs", docs, include_in_schema=False)


def page(document: dict[str, Any]) -> str:
    """The whole page."""
    operations = [
        _operation(path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [
        _details(f"<code>{html.escape(name)}</code>", _pre(schema))
        for name, schema in sorted(document["components"]["schemas"].items())
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>jobsvc API</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style><h1>jobsvc API</h1><p>{_text(document['info']['description'])}</p>"
        '<p>The same for programs: <a href="openapi.json">openapi.json</a> (OpenAPI 3.1).</p>'
        f"<h2>Requests</h2>{''.join(operations)}<h2>Documents</h2>{''.join(schemas)}</html>"
    )


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    title = (
        f'<span class="method">{method.upper()}</span><code>{html.escape(path)}</code> '
        f"&nbsp;{_text(operation['summary'])}"
    )
    parts = [f"<p>{_text(operation['description'])}</p>"]
    if operation.get("parameters"):
        rows = (
            (each["name"], each["in"], "needed" if each.get("required") else "", each.get("description", ""))
            for each in operation["parameters"]
        )
        parts.append(_table(("parameter", "in", "", "meaning"), rows))
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<p>Body <code>{html.escape(kind)}</code></p>{_pre(content)}")
    answers = ((status, each["description"]) for status, each in operation["responses"].items())
    parts.append(_table(("answer", "meaning"), answers))
    return _details(title, "".join(parts))


def _details(title: str, inside: str) -> str:
    return f"<details><summary>{title}</summary>{inside}</details>"


def _table(head: tuple[str, ...], rows: Any) -> str:
    cells = "".join(f"<tr>{''.join(f'<td>{_text(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{cells}</table>"


def _pre(value: Any) -> str:
    return f"<pre>{html.escape(json.dumps(value, indent=1))}</pre>"


def _text(text: str) -> str:
    """Escaped, with `code` between backticks."""
    pieces = html.escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if place % 2 else piece for place, piece in enumerate(pieces))
