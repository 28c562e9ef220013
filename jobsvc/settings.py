"""Settings: one frozen, validated value. Units are in the names; everything has a bound.

Nothing here is a component: stores, clocks and sources of randomness are constructor arguments of the
classes that use them. The environment is read in `from_environment` and nowhere else below the entry
points. The access token is not a setting, so that no printout of the settings can leak it.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from . import settings_bounds
from .errors import InvalidRequest

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
S3_RECORD_INTERVAL_SECONDS = 0.034
DEFAULT_POOL = "default"
DEFAULT_QUEUE = "default"
VARIABLE_PREFIX = "JOBSVC_"
_SHOWN_MAX = 100  # characters of a name that may be wrong
_YES_OR_NO = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_NUMBERS = {int: "a whole number", int | None: "a whole number"}


class PoolSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Workers of one resource shape, and how many of them there may be."""

    num_cpus: float = 1
    num_gpus: float = 0
    memory_bytes: int | None = None  # asked of Ray when a worker is placed
    resources: dict[str, float] = {}
    runtime_env: dict[str, Any] | None = None
    min_workers: int = 0
    max_workers: int = 1000
    idle_seconds: float = 60.0
    target_drain_seconds: float = 10.0  # the backlog should be worked off in this time
    job_memory_bytes_max: int | None = None  # a job whose processes use more is killed
    # A process of jobs is renewed when it has run so many, or when it has so much more than at its start.
    max_jobs_per_process: int | None = None  # None: as many as there are
    process_growth_bytes_max: int | None = None  # None: a quarter of job_memory_bytes_max, or 1 GiB
    process_growth_descriptors_max: int = 256
    process_growth_threads_max: int = 256

    @property
    def growth_bytes_max(self) -> int:
        if self.process_growth_bytes_max is not None:
            return self.process_growth_bytes_max
        return GIB if self.job_memory_bytes_max is None else self.job_memory_bytes_max // 4


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that an operator may choose. Defaults are for a laptop with the directory store."""

    # where and who
    data: str = ""  # a directory, or s3://BUCKET/PREFIX
    s3_endpoint_url: str | None = None
    service: str = "jobsvc"  # name of the Ray namespace, and of the Serve application
    host: str = "127.0.0.1"
    port: int = 8000
    route_prefix: str = ""  # as one application of several under Ray Serve: /jobs, say
    tasks: tuple[str, ...] = ()  # modules that register tasks when imported
    allow_shell: bool = False  # the built-in task jobsvc.shell
    allow_code: bool = False  # functions sent by value from notebooks
    pools: dict[str, PoolSettings] = msgspec.field(default_factory=lambda: {DEFAULT_POOL: PoolSettings()})
    queues: dict[str, str] = {}  # queue -> pool; a queue that is not named here uses `default`

    # liveness; no safety depends on any of these
    lease_seconds: float = 30.0
    heartbeat_seconds: float = 5.0
    outbox_after_seconds: float = 5.0
    orphan_seconds: float = 300.0
    takeover_silence_seconds: float = 3.0
    stepdown_seconds: float = 10.0
    idle_record_seconds: float = 4.0
    commit_interval_seconds: float | None = None  # least time between two records; None: by the store
    request_deadline_seconds: float = 15.0  # how long a replica looks for a leader before 503

    # worker
    prefetch_seconds: float = 0.2
    prefetch_jobs_max: int = 1000
    kill_grace_seconds: float = 3.0
    log_bytes_max: int = 4 * MIB  # per attempt; head and tail are kept
    result_bytes_max: int = 256 * MIB

    # sizes
    request_bytes_max: int = 64 * MIB
    inline_bytes_max: int = 8 * KIB  # larger payloads and results become objects of their own
    batch_jobs_max: int = 10_000
    labels_max: int = 16
    label_bytes_max: int = 128
    error_bytes_max: int = 16 * KIB
    max_jobs: int = 3_000_000

    # time
    retention_seconds: float = 7 * 86_400.0
    retained_jobs_max: int = 1_000_000  # at most half of max_jobs counts
    idempotency_seconds: float = 86_400.0

    # journal
    snapshot_log_bytes: int = 64 * MIB
    snapshot_records: int = 20_000

    # for stores that speak S3 but not its newer checksums
    s3_checksums: Literal["when_supported", "when_required"] = "when_supported"

    # how Ray Serve lets HTTP in
    proxy: Literal["haproxy", "python"] = "haproxy"  # Serve's two proxies; see serve_proxy.py
    replicas: int = 2
    # managers, and ways in, each on a machine of its own: those with `jobsvc_manager` and `jobsvc_http`
    spread: bool = False
    ray_dashboard_url: str | None = None  # as a browser reaches it, for links; None: as Ray tells it
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    def __post_init__(self) -> None:
        settings_bounds.check_numbers(msgspec.structs.asdict(self), settings_bounds.SETTINGS)
        settings_bounds.check_name(self.service, "service")
        settings_bounds.check_route_prefix(self.route_prefix)
        settings_bounds.check_url(self.s3_endpoint_url, "s3_endpoint_url")
        settings_bounds.check_url(self.ray_dashboard_url, "ray_dashboard_url")
        self._require(DEFAULT_POOL in self.pools, "pools", f"must have a pool named {DEFAULT_POOL!r}")
        for name, pool in self.pools.items():
            settings_bounds.check_name(name, "pools")
            settings_bounds.check_numbers(
                msgspec.structs.asdict(pool), settings_bounds.POOL, f"pools.{name}."
            )
            orderly = pool.min_workers <= pool.max_workers
            self._require(orderly, f"pools.{name}", "needs min_workers <= max_workers")
        for queue, to_pool in self.queues.items():
            settings_bounds.check_queue_name(queue, "queues")
            pools = ", ".join(sorted(self.pools))
            good = to_pool in self.pools
            self._require(
                good, "queues", f"queue {queue!r} names no known pool: {to_pool!r}; there are {pools}"
            )
        beats = self.heartbeat_seconds * 2 <= self.lease_seconds
        self._require(beats, "heartbeat_seconds", "must be at most half of lease_seconds")

    def _require(self, good: bool, field: str, detail: str) -> None:
        if not good:
            raise InvalidRequest(detail, field)

    def pool_of(self, queue: str) -> str:
        return self.queues.get(queue, DEFAULT_POOL)

    @property
    def is_s3(self) -> bool:
        return self.data.startswith("s3://")

    @property
    def record_interval_seconds(self) -> float:
        """S3 bills the PUT, so there are at most 30 records a second there; a directory takes what it can."""
        if self.commit_interval_seconds is not None:
            return self.commit_interval_seconds
        return S3_RECORD_INTERVAL_SECONDS if self.is_s3 else 0.0


def from_environment(environment: Mapping[str, str], **chosen: Any) -> Settings:
    """Settings from `JOBSVC_<FIELD>` variables: text, numbers and yes or no as they are, lists and objects as
    JSON. `chosen` wins. Raises InvalidRequest, which names the variable or the setting."""
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        text = environment.get(f"{VARIABLE_PREFIX}{field.name.upper()}")
        if text is not None:
            values[field.name] = _parsed(field.name, field.type, text)
    values.update({name: value for name, value in chosen.items() if value is not None})
    plain = msgspec.to_builtins(values)
    kinds = {field.name: field.type for field in msgspec.structs.fields(Settings)}
    for name, value in plain.items():
        if name == "pools" and isinstance(value, dict):
            for pool, shape in value.items():
                _check_kind(shape, PoolSettings, f"pools.{pool[:_SHOWN_MAX]}")
        elif name == "queues" and isinstance(value, dict):
            for queue, to_pool in value.items():
                _check_kind(to_pool, str, f"queues.{queue[:_SHOWN_MAX]}")
        else:
            _check_kind(value, kinds[name], name)
    return msgspec.convert(plain, Settings)


def _check_kind(value: Any, kind: Any, field: str) -> None:
    """msgspec names no key of a mapping, so each is looked at by itself."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        detail, _, inside = str(error).partition(" - at `$")
        if "unknown field" in detail:
            detail += f"; there are {', '.join(kind.__struct_fields__)}"
        raise InvalidRequest(detail, field + inside.rstrip("`")) from error


def _parsed(field: str, kind: Any, text: str) -> Any:
    """The value that a variable's text means, for a field of this type."""
    variable = f"{VARIABLE_PREFIX}{field.upper()}"
    choices = typing.get_args(kind)
    if type(None) in choices and text.strip().lower() in ("", "null", "none"):
        return None
    if kind in (str, str | None):
        return text
    if typing.get_origin(kind) is Literal:
        if text not in (*choices, *map(_quoted, choices)):
            raise InvalidRequest(f"{variable}={text!r} is none of {', '.join(choices)}", field)
        return text.strip('"')
    if kind is bool and text.strip().lower() in _YES_OR_NO:
        return _YES_OR_NO[text.strip().lower()]
    if kind == tuple[str, ...] and not text.lstrip().startswith("["):
        return [each for each in text.replace(",", " ").split() if each]
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        if kind is bool:
            raise InvalidRequest(f"{variable}={text!r} is neither true nor false", field) from error
        if dict not in (typing.get_origin(kind), *map(typing.get_origin, choices)):
            raise InvalidRequest(
                f"{variable}={text!r} is not {_NUMBERS.get(kind, 'a number')}", field
            ) from error
        raise InvalidRequest(f"{variable} is not valid JSON: {error}", field) from error


def _quoted(text: str) -> str:
    return f'"{text}"'


def encode_settings(settings: Settings) -> str:
    return msgspec.json.encode(settings).decode()


def decode_settings(text: str | bytes) -> Settings:
    return msgspec.json.decode(text, type=Settings)
