"""A small HTTP/1.1 load generator: keep-alive connections, no parsing beyond what is needed.

A general client costs more than the service on the same cores, and would be what is measured.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from urllib.parse import urlsplit


class Connection:
    """One keep-alive connection; reconnects when the server closes it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: str = ""
    ) -> tuple[int, bytes]:
        """Status and body. Raises OSError or asyncio.IncompleteReadError when the connection breaks."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self.host, self.port, limit=64 * 1024 * 1024)
        reader, writer = self._streams
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Length: {len(body)}\r\n"
        try:
            writer.write(f"{head}{headers}\r\n".encode() + body)
            return await self._answer(reader)
        except BaseException:
            writer.close()
            self._streams = None
            raise

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head[9:12])
        if b"transfer-encoding: chunked" in head:
            return status, await self._chunks(reader)
        place = head.find(b"content-length:")
        length = int(head[place + 15 : head.find(b"\r\n", place)]) if place >= 0 else 0
        return status, await reader.readexactly(length) if length else b""

    async def _chunks(self, reader: asyncio.StreamReader) -> bytes:
        body = b""
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


async def closed_loop(
    url: str, connections: int, seconds: float, request: Callable[[int], tuple[str, str, bytes, str]]
) -> tuple[int, float, list[float]]:
    """Each connection sends its next request when the last is answered.

    Returns good answers, the seconds taken, and the latencies. `request` maps a running number to
    (method, path, body, header lines).
    """
    latencies: list[float] = []
    numbers = iter(range(10**9))
    began = time.perf_counter()
    end = began + seconds

    async def one() -> None:
        connection = Connection(url)
        while time.perf_counter() < end:
            sent = time.perf_counter()
            status, body = await connection.request(*request(next(numbers)))
            if status not in (200, 202):
                raise RuntimeError(f"answered {status}: {body[:300]!r}")
            latencies.append(time.perf_counter() - sent)
        connection.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return len(latencies), time.perf_counter() - began, latencies
