"""One store, one service: whose a store is, and whether that one still writes.

A takeover record carries the name of the service whose manager wrote it; so the log itself says who leads.
Managers of the same name are one service, wherever they run: a replaced head and an upgrade go on at once. If
two of them are up for a moment, the journal decides, as ever. Managers of another name keep away while the
owner writes, and take over only when it has written nothing for `QUIET_SECONDS` while they watched. An idle
leader writes a record every few seconds, and no clock of another machine is asked. A log without names (of
version 0.1) belongs to whoever comes.

This is manners, not safety. If it is wrong, two services fence each other in turn, and lose no job.
"""

from __future__ import annotations

import msgspec

from .log_records import (
    CLUSTER_KEY,
    CLUSTER_MAGIC,
    LOG_PREFIX,
    InvalidRecord,
    Mark,
    Position,
    decode_record,
    log_key,
    positions_of,
)
from .object_store import ObjectStore
from .snapshots import newest_mark

QUIET_SECONDS = 15.0
FREE_PREFIX = "free/"
IN_USE = "the store is in use by service"  # by this, `up` knows that waiting does not help


class Owner(msgspec.Struct, frozen=True):
    """Who led last, as the store alone tells it."""

    service: str
    cluster_id: bytes
    next_position: Position  # what it would write next
    log_time: float  # of its last record

    def is_other_than(self, service: str) -> bool:
        return self.service not in ("", service)


async def owner_of(store: ObjectStore) -> Owner | None:
    """None if nobody has led here. A log that cannot be read is left to the managers: they say why."""
    guard = await store.get(CLUSTER_KEY)
    if guard is None or not guard.startswith(CLUSTER_MAGIC):
        return None
    cluster_id = guard[len(CLUSTER_MAGIC) :]
    mark = await newest_mark(store, cluster_id)
    (epoch, n), service, log_time = mark.next_position, mark.service, mark.log_time
    while True:
        keys = await store.list(f"{LOG_PREFIX}{epoch:010}/")
        written = positions_of(keys, LOG_PREFIX)
        if not written:
            break
        encoded = await store.get(log_key(written[-1]))
        try:
            record = decode_record(encoded or b"", cluster_id)
        except InvalidRecord:
            return None
        log_time = record.log_time
        if record.kind == "data":
            n = record.position.n + 1
            break
        epoch, n, service = epoch + 1, 0, record.service
    return Owner(service, cluster_id, Position(epoch, n), log_time) if epoch > 0 else None


async def has_gone_on(store: ObjectStore, owner: Owner) -> bool:
    """Whether anything was written since."""
    return await store.get(log_key(owner.next_position)) is not None


def _free_key(place: Position) -> str:
    return f"{FREE_PREFIX}{place.epoch:010}-{place.n:012}"


async def set_free(store: ObjectStore, service: str) -> None:
    """This service has ended: nobody has to wait for it. What was said of an earlier end goes."""
    owner = await owner_of(store)
    if owner is None or owner.service != service:
        return
    key = _free_key(owner.next_position)
    await store.delete_many([each for each in await store.list(FREE_PREFIX) if each != key])
    await store.put_new(key, service.encode())


async def is_free(store: ObjectStore, place: Position) -> bool:
    """Whether who led last has ended, and had written up to this place."""
    return await store.get(_free_key(place)) is not None


class OtherService:
    """What a manager has seen of another service in its log, and whether it must keep away."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._name = ""
        self._records = 0
        self._quiet_since = 0.0
        self._is_alive = False
        self._free_at: Position | None = None

    async def look(self, store: ObjectStore, mark: Mark) -> None:
        """Whether the other one has said that it has ended. Once, when all that was written is read."""
        if mark.service not in ("", self._own) and await is_free(store, mark.next_position):
            self._free_at = mark.next_position

    def keeps_away(self, mark: Mark, now: float) -> bool:
        """Whether another service has written within the last seconds, as far as was watched. Call often."""
        if mark.service in ("", self._own) or mark.next_position == self._free_at:
            self._name = ""
            return False
        if self._name != mark.service:
            self._name, self._records, self._quiet_since = mark.service, mark.records, now
            self._is_alive = False
        elif self._records != mark.records:
            self._records, self._quiet_since, self._is_alive = mark.records, now, True
        return now - self._quiet_since < QUIET_SECONDS

    def problem(self, cluster_id: bytes, now: float) -> str | None:
        """What to tell an operator while this manager keeps away."""
        if not self._name:
            return None
        if self._is_alive:
            return in_use(self._name, cluster_id)
        left = max(0.0, QUIET_SECONDS - (now - self._quiet_since))
        return f"service {self._name!r} led here last; taking over in {left:.0f} s, unless it writes"


def in_use(service: str, cluster_id: bytes) -> str:
    return (
        f"{IN_USE} {service!r} (cluster id {cluster_id.hex()}), which is writing to it: end that one first"
        f" (jobsvc down --service {service}), or choose another folder or prefix"
    )
