"""A wire to a service that can be cut and mended: bytes go through, until they do not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType
from urllib.parse import urlsplit


class Wire:
    """Use as a context manager; `url` is the service's through the wire."""

    def __init__(self, url: str) -> None:
        self._port = urlsplit(url).port
        self._is_cut = False
        self._open: set[asyncio.StreamWriter] = set()
        self._silent: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Wire:
        self._thread.start()
        begin = asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(begin, self._loop).result(10)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        self._call(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def cut(self) -> None:
        """Everything that is open breaks, and nothing new comes through."""
        self._call(self._cut)

    def mend(self) -> None:
        self._is_cut = False

    def silence(self) -> None:
        """What is open stays so, and nothing comes through it any more; what is opened from now on works."""
        self._call(lambda: self._silent.update(self._open))

    def _call(self, act: Callable[[], None]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (act(), done.set()))
        done.wait(10)

    def _cut(self) -> None:
        self._is_cut = True
        for writer in [*self._open, *self._silent]:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        there, thither = await asyncio.open_connection("127.0.0.1", self._port)
        self._open |= {writer, thither}
        await asyncio.gather(self._pump(reader, thither), self._pump(there, writer))
        self._open -= {writer, thither}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                if writer not in self._silent:
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass  # the wire was cut
        finally:
            if writer not in self._silent:
                writer.close()
