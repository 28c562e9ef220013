"""A service in this process behind a real HTTP server on loopback, and a server that does as it is told."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import msgspec
import uvicorn

from jobsvc.errors import JobsvcError
from jobsvc.job_calls import Call, NoSecondRun, call_by_value, call_of_task, write_result
from jobsvc.jobs import (
    BlobRef,
    ErrorInfo,
    Finished,
    Grant,
    JobOptions,
    Outcome,
    Result,
    id_text,
)
from jobsvc.tasks import load_tasks

from .served_app import ServedApp

WORKER_PAUSE_SECONDS = 0.005


class LocalService(ServedApp):
    """The real app under uvicorn, with a worker that runs the built-in tasks while `working` is true.

    What a job is given is also what it prints, so that there are logs.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.working = True
        self.url = ""
        self._round = asyncio.Lock()
        self._registry = load_tasks(self.settings.tasks)

    async def _start(self) -> None:
        await super()._start()
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        config = uvicorn.Config(self.app, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))
        self._worker = asyncio.create_task(self._work_always())
        while not self._server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.005)

    async def _stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._worker.cancel()
        await asyncio.wait([self._serving, self._worker])
        await super()._stop()

    def rest(self) -> None:
        """No job is begun from now on, until `working` is true again."""
        self.working = False
        self.run(self._come_to_rest())

    async def _come_to_rest(self) -> None:
        async with self._round:
            pass

    async def _work_always(self) -> None:
        while True:
            async with self._round:
                if self.working:
                    await self._work()
            await asyncio.sleep(WORKER_PAUSE_SECONDS)

    async def _finish(self, grant: Grant, options: JobOptions) -> Finished:
        payload = grant.payload
        if isinstance(payload, BlobRef):
            stored = await self.store.get(payload.key, payload.offset, payload.length)
            assert stored is not None
            payload = stored
        await self.store.put_new(
            f"logs/{id_text(grant.job_id)}/{grant.attempt}/000000", b"given: %b\n" % payload
        )
        began = time.time()
        try:
            function, args, kwargs, returns = self._call(options, payload)
            value = function(*args, **kwargs)
            result = Result(*write_result(value, self.settings.result_bytes_max, returns))
        except (JobsvcError, NoSecondRun) as error:
            final = isinstance(error, NoSecondRun)
            name = error.kind if isinstance(error, NoSecondRun) else type(error).__name__
            info = ErrorInfo(name, str(error), "Traceback of the task")
            end = Finished(grant.job_id, grant.attempt, Outcome.RAISED, began, time.time(), error=info)
            return msgspec.structs.replace(end, final=final)
        return Finished(grant.job_id, grant.attempt, Outcome.SUCCEEDED, began, time.time(), result)

    def _call(self, options: JobOptions, payload: bytes) -> Call:
        if options.content == "pickle":
            return call_by_value(payload)
        definition = self._registry.get(options.task)
        assert definition is not None
        return call_of_task(definition, options.content, payload)


class Asked(NamedTuple):
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Reply = tuple[int, dict[str, str], bytes]
HANG_UP: Reply = (0, {}, b"")


def answer(document: Any, status: int = 200, **headers: str) -> Reply:
    return status, headers, msgspec.json.encode(document)


class ScriptedServer:
    """Gives the replies of a list one after the other, then the last one always; remembers what was asked."""

    def __init__(self, *replies: Reply, reply: Callable[[Asked], Reply] | None = None) -> None:
        self.asked: list[Asked] = []
        self._replies: Sequence[Reply] = replies
        self._reply = reply
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                server._answer(self)

            do_GET = do_POST = do_PUT = do_PATCH = _any

            def log_message(self, format: str, *args: Any) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> ScriptedServer:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        asked = Asked(handler.command, handler.path, dict(handler.headers.items()), body)
        self.asked.append(asked)
        if self._reply is not None:
            status, headers, content = self._reply(asked)
        else:
            status, headers, content = self._replies[min(len(self.asked), len(self._replies)) - 1]
        if status == 0:
            handler.close_connection = True
            return
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)


def unused_url() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
