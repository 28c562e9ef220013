"""A rig that is kept up by hand, told what to do from another terminal.

    DIR/rig partition i-0123 '["s3"]'
    DIR/rig refuse_capacity true

An order is a method of `Rig` by its name; each argument is JSON, or else a plain string.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import socketserver
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .rig import Rig

ORDERS = (
    *("instances", "launch", "run_on", "unplug", "silence", "reboot", "partition", "heal", "slow"),
    *("spot_notice", "rebalance_notice", "refuse_capacity", "fail_api", "calls", "make_bucket"),
)


class OrderHandler(socketserver.StreamRequestHandler):
    server: OrderServer

    def handle(self) -> None:
        order, *arguments = json.loads(self.rfile.readline())
        try:
            answer = getattr(self.server.rig, order)(*arguments) if order in ORDERS else f"orders: {ORDERS}"
        except Exception as error:  # it is told to whoever gave the order
            answer = repr(error)
        self.wfile.write(json.dumps(answer, default=_plain, indent=1).encode())


class OrderServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, rig: Rig, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.rig = rig
        super().__init__(str(path), OrderHandler)
        threading.Thread(target=self.serve_forever, daemon=True, name="rig-orders").start()


def tell(path: Path, words: Sequence[str]) -> str:
    """Give an order; what came of it."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(path))
        line.sendall(json.dumps([words[0], *map(_read, words[1:])]).encode() + b"\n")
        with line.makefile() as answer:
            return answer.read()


def _read(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def _plain(value: Any) -> Any:
    is_record = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return dataclasses.asdict(value) if is_record else str(value)
