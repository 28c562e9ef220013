"""What `up` and `doctor` look at before anything starts.

Each check says nothing, or raises one line: what is wrong, where, and what to do. None takes longer than a
few seconds, whatever does not answer. What runs later waits and tries again where that may help; here
somebody looks on.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from .access import check_bind
from .discovery import RUN_DIR_VARIABLE
from .errors import InvalidRequest, JobsvcError, StoreUnfit, Unavailable
from .object_store import ObjectStore, StoreError, Warnings, date_of
from .ports import Answer, knock
from .s3_store import open_store_quickly
from .settings import Settings
from .store_owner import QUIET_SECONDS, Owner, has_gone_on, in_use, is_free, owner_of, set_free

T = TypeVar("T")

STORE_SECONDS = 10.0  # on a machine that is busy; requests have shorter limits of their own
STORE_RETRY_SECONDS = 1.0  # a store that said nothing so soon is asked once more
STORE_PAUSE_SECONDS = 0.2
WATCH_SECONDS = 5.0  # an idle leader writes every four; the managers watch longer
WATCH_PAUSE_SECONDS = 0.25
FREE_SECONDS = 5.0
OWNER_SECONDS = 20.0  # with listing a long log
KNOCK_SECONDS = 1.5
TRIAL_BYTES = 256 * 1024
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
RAY_CLIENT_SCHEME = "ray://"


def check_run_dir(run_dir: Path) -> None:
    """Make the folder of discovery files, and see that a file can be written there."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_trial(run_dir, 1)
    except OSError as error:
        raise InvalidRequest(
            f"{run_dir.absolute()} cannot be used: {_said(error)}", RUN_DIR_VARIABLE
        ) from error


def check_way_in(settings: Settings, token: str | None) -> None:
    """Host and token, on the machine that will listen."""
    check_bind(settings.host, token)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        with closing(socket.socket(family)) as probe:
            probe.bind((settings.host, 0))
    except OSError as error:
        raise InvalidRequest(
            f"{settings.host!r} is no address of this machine: {error.strerror or error}", "host"
        ) from error


def absolute_folder(data: str) -> Path:
    """The folder that `data` names; it is made if it is not there."""
    if "://" in data:
        raise InvalidRequest(f"{data!r} is neither a folder nor s3://BUCKET/PREFIX", "data")
    if not data.strip() or not data.isprintable():
        raise InvalidRequest(f"{data!r} is no name of a folder that anybody would find again", "data")
    try:
        folder = Path(data).expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequest(f"{error.filename or data} cannot be used: {_said(error)}", "data") from error
    except (RuntimeError, ValueError) as error:  # ~somebody, or a zero byte
        raise InvalidRequest(f"{data!r} is no folder: {error}", "data") from error
    return folder


def _write_trial(folder: Path, size: int) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0" * size)
        file.flush()
        os.fsync(file.fileno())


def _said(error: OSError) -> str:
    if error.errno in DISK_FULL:
        return f"the disk is full ({error.strerror})"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "there is a file of this name; it must be a folder"
    return error.strerror or str(error)


def check_store(settings: Settings) -> Warnings:
    """Prove that the store is there and fit. Raises InvalidRequest, StoreUnfit or Unavailable."""
    if not settings.is_s3:
        try:
            _write_trial(absolute_folder(settings.data), TRIAL_BYTES)
        except OSError as error:
            raise InvalidRequest(f"{settings.data} cannot be written: {_said(error)}", "data") from error
    return ask_store(settings, _proved, STORE_SECONDS)


def check_owner(settings: Settings, say: Callable[[str], None]) -> str | None:
    """Refuse a store to which another service writes. Returns the name of one that has written before.

    One look is enough for a store that is free or the service's own.
    """

    async def look(store: ObjectStore) -> Owner | None:
        owner = await owner_of(store)
        if owner is None or not owner.is_other_than(settings.service):
            return None
        if await is_free(store, owner.next_position):
            return owner
        say(f"service {owner.service!r} led this store last; looking whether it still writes")
        until = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < until:
            if await has_gone_on(store, owner):
                raise InvalidRequest(in_use(owner.service, owner.cluster_id), "data")
            await asyncio.sleep(WATCH_PAUSE_SECONDS)
        return owner

    owner = ask_store(settings, look, OWNER_SECONDS)
    return owner.service if owner is not None else None


def free_store(settings: Settings, say: Callable[[str], None]) -> None:
    """The service has ended: a service of another name may have its store at once."""
    try:
        ask_store(settings, lambda store: set_free(store, settings.service), FREE_SECONDS)
    except JobsvcError as error:
        waits = f"a service of another name waits {QUIET_SECONDS:g} s for it"
        say(f"the store could not be told, so {waits}: {error}")


def check_clocks(settings: Settings) -> tuple[float | None, float | None]:
    """By how much the journal's time, and the store's clock, are ahead of this machine's clock."""

    async def look(store: ObjectStore) -> tuple[float | None, float | None]:
        await store.probe()
        dated, wall = date_of(store), time.time()
        store_ahead = None if dated is None else dated.ahead_of(wall, asyncio.get_running_loop().time())
        owner = await owner_of(store)
        return None if owner is None else owner.log_time - time.time(), store_ahead

    return ask_store(settings, look, OWNER_SECONDS)


def ask_store(settings: Settings, ask: Callable[[ObjectStore], Coroutine[Any, Any, T]], seconds: float) -> T:
    """Ask the store, in a thread: a name that does not resolve takes longer than anybody wants to wait."""
    outcome: list[T | Exception] = []

    async def whole() -> T:
        store = open_store_quickly(settings)
        try:
            return await ask(store)
        finally:
            store.close()

    def work() -> None:
        try:
            outcome.append(asyncio.run(whole()))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=work, name="store check", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise Unavailable(f"{_store_of(settings)} has not answered in {seconds:g} s")
    found = outcome[0]
    if isinstance(found, StoreError):
        raise Unavailable(f"{_store_of(settings)} does not answer: {found}") from found
    if isinstance(found, StoreUnfit):
        raise StoreUnfit(f"data: {settings.data}: {found}") from found
    if isinstance(found, Exception):
        raise found
    return found


def _store_of(settings: Settings) -> str:
    at = f" at {settings.s3_endpoint_url} (s3_endpoint_url)" if settings.s3_endpoint_url else ""
    return f"data: {settings.data}{at}"


async def _proved(store: ObjectStore) -> Warnings:
    began = time.monotonic()
    try:
        return await store.probe()
    except StoreError:
        if time.monotonic() - began > STORE_RETRY_SECONDS:
            raise
    await asyncio.sleep(STORE_PAUSE_SECONDS)
    return await store.probe()


def check_ray_address(address: str) -> None:
    """The form of a Ray's address, and that somebody listens there."""
    field = "ray_address"
    if address == "auto":
        return
    if address.startswith(RAY_CLIENT_SCHEME):
        plain = address.removeprefix(RAY_CLIENT_SCHEME).partition(":")[0]
        raise InvalidRequest(f"{address} is for Ray clients; give the head itself, {plain}:6379", field)
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65_536 or "/" in host:
        raise InvalidRequest(f"{address!r} is not HOST:PORT of a Ray head, as `ray start` said it", field)
    answer = knock(address, KNOCK_SECONDS)
    if answer is Answer.REFUSED:
        raise Unavailable(f"{field}: nobody listens at {address}; `ray start --head` says its address")
    if answer is Answer.NONE:
        raise Unavailable(f"{field}: {address} does not answer; is the name right, and the machine up?")
