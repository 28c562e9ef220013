"""A proxy in front of an S3 server that loses answers, hangs and lies, as told.

    python -m tests.s3_fault_proxy --upstream http://127.0.0.1:4566 [--port 0]

prints `ready URL` and serves until it is ended. What it does to requests is switched over HTTP:

    curl -X POST 'URL/__fault__?mode=store_then_drop&method=PUT&times=1'

    pass                hand on, and the answer back
    slow                the same, `seconds` later
    fail_500            answer 500; the server never sees the request
    store_then_500      the server does it; the answer is 500
    store_then_drop     the server does it; the connection is closed without an answer
    store_then_hang     the server does it; no answer comes
    hang                no answer comes, and the server never sees the request
    reset               the connection is reset before the server sees the request

`method` limits the fault to one HTTP method, `times` to so many requests (then it is `pass` again).
`GET URL/__fault__` says what is set and how many requests met it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import signal
import socket
import struct
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from .s3_server import REPOSITORY, end_process

CONTROL_PATH = "/__fault__"
MODES = frozenset(
    ("pass", "slow", "fail_500", "store_then_500", "store_then_drop", "store_then_hang", "hang", "reset")
)
HEAD_BYTES_MAX = 64 * 1024
ERROR_500 = b"<Error><Code>InternalError</Code><Message>made by the fault proxy</Message></Error>"


@dataclasses.dataclass
class Fault:
    mode: str = "pass"
    seconds: float = 0.0
    method: str | None = None
    times: int | None = None
    met: int = 0  # requests that this fault was applied to

    def take(self, method: str) -> str:
        """The mode for this request; counts it."""
        if self.method not in (None, method) or (self.times is not None and self.met >= self.times):
            return "pass"
        self.met += 1
        return self.mode


@dataclasses.dataclass(frozen=True)
class Request:
    line: str
    headers: list[tuple[str, str]]
    body: bytes  # as it came, chunk marks included

    @property
    def method(self) -> str:
        return self.line.split(" ", 1)[0]

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]

    def encoded(self) -> bytes:
        kept = [f"{name}: {value}" for name, value in self.headers if name not in ("connection", "expect")]
        return "\r\n".join([self.line, *kept, "connection: close", "", ""]).encode("latin-1") + self.body


class FaultProxy:
    def __init__(self, upstream_host: str, upstream_port: int) -> None:
        self._upstream = (upstream_host, upstream_port)
        self._fault = Fault()

    async def serve(self, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._connection, "127.0.0.1", port, limit=HEAD_BYTES_MAX)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _read_request(reader, writer)) is not None:
                if request.target.startswith(CONTROL_PATH):
                    writer.write(self._control(request))
                elif not await self._answer(request, reader, writer):
                    return
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away: its right
        finally:
            writer.close()

    async def _answer(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Apply the fault. False: this connection is over."""
        fault = self._fault
        mode = fault.take(request.method)
        if mode == "reset":
            _reset(writer)
            return False
        if mode == "fail_500":
            writer.write(_response(500, ERROR_500))
            return True
        if mode == "slow":
            await asyncio.sleep(fault.seconds)
        if mode != "hang":
            answer = await self._forward(request)
        if mode in ("hang", "store_then_hang"):
            await reader.read(1)  # until the client gives up
            return False
        if mode == "store_then_drop":
            return False
        writer.write(_response(500, ERROR_500) if mode == "store_then_500" else answer)
        return mode == "store_then_500"  # the server's own answer says "connection: close"

    async def _forward(self, request: Request) -> bytes:
        reader, writer = await asyncio.open_connection(*self._upstream)
        try:
            writer.write(request.encoded())
            await writer.drain()
            return await reader.read(-1)
        finally:
            writer.close()

    def _control(self, request: Request) -> bytes:
        if request.method == "POST":
            query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(request.target).query))
            mode = query.get("mode", "pass")
            if mode not in MODES:
                return _response(400, f"modes are {sorted(MODES)}".encode())
            times = query.get("times")
            self._fault = Fault(
                mode,
                float(query.get("seconds", 0)),
                query.get("method"),
                None if times is None else int(times),
            )
        return _response(200, json.dumps(dataclasses.asdict(self._fault)).encode())


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    """The next request of a connection, or None when the client has closed it."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    line, *rest = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    pairs = (header.partition(":") for header in rest)
    headers = [(name.strip().lower(), value.strip()) for name, _, value in pairs]
    known = dict(headers)
    if known.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if known.get("transfer-encoding", "").lower() == "chunked":
        return Request(line, headers, await _read_chunks(reader))
    return Request(line, headers, await reader.readexactly(int(known.get("content-length", 0))))


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    pieces = []
    while True:
        size_line = await reader.readuntil(b"\r\n")
        size = int(size_line.split(b";")[0], 16)
        pieces.append(size_line)
        if size == 0:
            while pieces[-1] != b"\r\n":  # trailers, up to the empty line
                pieces.append(await reader.readuntil(b"\r\n"))
            return b"".join(pieces)
        pieces.append(await reader.readexactly(size + 2))


def _response(status: int, body: bytes) -> bytes:
    kind = b"application/json" if status == 200 else b"application/xml"
    head = b"HTTP/1.1 %d From-Proxy\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    return head % (status, kind, len(body)) + body


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the client sees a reset: lingering for no time drops what is unsent."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# --- for tests ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RunningProxy:
    endpoint_url: str
    pid: int

    def set(self, mode: str, **options: Any) -> None:
        query = urllib.parse.urlencode({"mode": mode, **options})
        request = urllib.request.Request(f"{self.endpoint_url}{CONTROL_PATH}?{query}", method="POST")
        with urllib.request.urlopen(request, timeout=5) as answer:
            answer.read()

    def met(self) -> int:
        """How many requests met the fault that is set."""
        with urllib.request.urlopen(f"{self.endpoint_url}{CONTROL_PATH}", timeout=5) as answer:
            return int(json.load(answer)["met"])


@contextlib.contextmanager
def running_proxy(upstream_url: str) -> Iterator[RunningProxy]:
    """The proxy as a process of its own, ended by its pid."""
    command = [sys.executable, "-m", "tests.s3_fault_proxy", "--upstream", upstream_url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    try:
        assert process.stdout is not None
        word, _, url = process.stdout.readline().strip().partition(" ")
        if word != "ready":
            raise RuntimeError("the fault proxy did not start")
        yield RunningProxy(url, process.pid)
    finally:
        end_process(process)


async def run_forever(upstream_url: str, port: int) -> None:
    upstream = urllib.parse.urlsplit(upstream_url)
    if upstream.hostname is None or upstream.port is None:
        raise SystemExit(f"{upstream_url!r} needs a host and a port")
    server = await FaultProxy(upstream.hostname, upstream.port).serve(port)
    print(f"ready http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="A proxy that makes an S3 server misbehave.")
    parser.add_argument("--upstream", required=True, help="URL of the S3 server")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    options = parser.parse_args()
    asyncio.run(run_forever(options.upstream, options.port))


if __name__ == "__main__":
    main()
