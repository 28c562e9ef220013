"""The systemd units of a node of the cluster: what they say, and how they get there.

| unit | where | what |
|---|---|---|
| `jobsvc-ray` | every node | `ray start --block`, started again whenever it ends, and at boot |
| `jobsvc-service` | head | puts the service into Ray, again after each start of Ray: it is bound to it |
| `jobsvc-pulse` | head | says in the store that the head lives, when a guard that cannot reach it asks |
| `jobsvc-watchdog` | all but the head | drains before a spot instance ends; ends a machine without head |
| `jobsvc-guard` | manager node | brings back a head that is gone |

`head_units` and `worker_units` are pure: the same cluster file gives the same texts, so `install` can tell
that nothing has changed, and then touches nothing. That is what makes `ray up` on a living cluster safe. A
line in each text names the code that it was written for: new code is a change, and is started.

The guard's unit is the exception: it is never restarted, because the guard's own `ray up` is what brings a
new head, and that runs `jobsvc node worker` on the guard's machine before that `ray up` has ended.

What Ray's own processes need comes from the environment in which `ray up` (on the head) or the autoscaler (on
the others) runs the start command: RAY_OVERRIDE_RESOURCES and RAY_OVERRIDE_LABELS, RAY_CLOUD_INSTANCE_ID,
RAY_NODE_TYPE_NAME, and on the head RAY_enable_autoscaler_v2. Without the last three a head that systemd
starts again would have the old autoscaler, or one that knows nobody. So every RAY_ variable is kept, and
every AUTOSCALER_ one, as Ray calls some of its own.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from .errors import Unavailable
from .ray_head import LOG_BYTES_MAX, LOG_FILES_MAX, OBJECT_STORE_BYTES, without_client_server

RAY_UNIT, SERVICE_UNIT = "jobsvc-ray.service", "jobsvc-service.service"
WATCHDOG_UNIT, GUARD_UNIT = "jobsvc-watchdog.service", "jobsvc-guard.service"
PULSE_UNIT = "jobsvc-pulse.service"
NEVER_RESTARTED = frozenset({GUARD_UNIT})
GCS_PORT = 6379
BOOTSTRAP_CONFIG = "ray_bootstrap_config.yaml"  # in the head's home, both put there by `ray up`
BOOTSTRAP_KEY = "ray_bootstrap_key.pem"
NODE_DIR = "/run/jobsvc"
SYSTEMD_BOOTED = Path("/run/systemd/system")  # there if and only if systemd runs this machine
COMMAND_SECONDS = 120.0
OPEN_FILES = 65_536

# Variables of the start command that the units keep; secrets, and what is true only once, stay out.
KEPT_PREFIXES = ("RAY_", "AUTOSCALER_", "JOBSVC_")
KEPT = frozenset(
    {"PYTHONPATH", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_CA_BUNDLE"}
)
KEPT_ENDPOINTS = "AWS_ENDPOINT_URL"
NOT_KEPT = frozenset(
    {"RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_HEAD_IP", "JOBSVC_TOKEN", "JOBSVC_STARTED_BY", "JOBSVC_URL"}
)
PLAIN_WORD = re.compile(r"[A-Za-z0-9_./:=@,+-]+")

Units = dict[str, str]
Section = list[tuple[str, str]]

# A stop ends the head's raylet before its autoscaler. One that looks in between sees a node that has ended,
# its own, and has EC2 terminate it: a reboot would be the end of the machine. So the autoscaler goes first.
AUTOSCALER_FIRST = ("ExecStop", "-/usr/bin/pkill -KILL -P $MAINPID -f autoscaler/.*/monitor")


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """This machine, as its units see it."""

    python: str
    user: str
    home: str
    run_dir: str  # of discovery files
    code: str  # tells this version of jobsvc from others
    environment: dict[str, str]  # of all units: see `unit_environment`

    @property
    def node_dir(self) -> str:
        return self.environment.get("JOBSVC_NODE_DIR", NODE_DIR)


# --- what is in them -----------------------------------------------------------------------------------


def unit_environment(
    started_in: Mapping[str, str], python: str, proxy: Mapping[str, str], python_path: str | None = None
) -> dict[str, str]:
    """What all units of a node find in their environment, from that of the start command."""
    kept = {
        name: value
        for name, value in started_in.items()
        if name in KEPT or name.startswith(KEPT_PREFIXES) or name.startswith(KEPT_ENDPOINTS)
    }
    said = kept.pop("PYTHONPATH", "").split(":")
    paths = ":".join(dict.fromkeys(path for path in (python_path, *said) if path))  # each once
    folders = (str(Path(python).parent), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    chosen = {
        "PATH": ":".join(folders),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_START_HOOK": f"{without_client_server.__module__}.{without_client_server.__name__}",
        "RAY_worker_niceness": "0",  # managers and replicas at normal priority; jobs step back themselves
        "RAY_timeout_ms_task_wait_for_death_info": "20",  # a call to a process that died fails at once
        "RAY_ROTATION_MAX_BYTES": str(LOG_BYTES_MAX),
        "RAY_ROTATION_BACKUP_COUNT": str(LOG_FILES_MAX),
        # A port of Serve's whose connections the kernel still remembers is free for the next start, a second
        # later. On a laptop other Serves of the same user would share it; here there are none.
        "SERVE_SOCKET_REUSE_PORT_ENABLED": "1",
        # Ray drains a node for up to 30 s before `ray start` ends: here the watchdog has done that, in time.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "SPT_NOENV": "1",  # a process that names its job in its title keeps its environment readable
        **({"PYTHONPATH": paths} if paths else {}),
    }
    merged = {**kept, **proxy, **chosen}
    return {name: merged[name] for name in sorted(merged) if name not in NOT_KEPT}


def head_units(
    node: Node, service: str, service_options: Iterable[str], store_options: Iterable[str], cluster_file: str
) -> Units:
    """The head: Ray with the autoscaler, the service in it, and beside them who can say that they live."""
    ray = [
        *(node.python, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={GCS_PORT}"),
        f"--autoscaling-config={cluster_file}",
        *("--dashboard-host=127.0.0.1", "--include-log-monitor=False"),
        f"--object-store-memory={OBJECT_STORE_BYTES}",
    ]
    # what was in a Ray that ended is gone: `up` must not look for it
    forget = ("ExecStartPre", command("/bin/rm", "-f", f"{node.run_dir}/{service}.json"))
    put_into_ray = [node.python, "-m", "jobsvc", "node", "service", *service_options]
    return {
        RAY_UNIT: ray_unit(node, ray, [forget, AUTOSCALER_FIRST], wants=SERVICE_UNIT),
        SERVICE_UNIT: unit_text(
            node,
            [
                ("Description", "jobsvc: managers and HTTP, in the Ray of jobsvc-ray"),
                ("BindsTo", RAY_UNIT),
                ("PartOf", RAY_UNIT),
                ("After", f"{RAY_UNIT} network-online.target"),
                ("StartLimitIntervalSec", "0"),
            ],
            [
                ("Type", "oneshot"),
                ("RemainAfterExit", "yes"),
                ("ExecStart", command(*put_into_ray)),
                ("Restart", "on-failure"),
                ("RestartSec", "2"),
                ("TimeoutStartSec", "600"),
            ],
        ),
        PULSE_UNIT: daemon_unit(
            node,
            "jobsvc: tells guards that this head lives",
            *("-m", "jobsvc", "node", "pulse", *store_options),
        ),
    }


def worker_units(node: Node, head_ip: str, guard_options: Iterable[str] | None) -> Units:
    """Every other node; the one with guard options is the manager's."""
    address = f"{head_ip}:{GCS_PORT}"
    ray = [
        *(node.python, "-m", "ray.scripts.scripts", "start", f"--address={address}", "--block"),
        *("--include-log-monitor=False", f"--object-store-memory={OBJECT_STORE_BYTES}"),
    ]
    note = f"echo {address} > {node.node_dir}/head.new && mv {node.node_dir}/head.new {node.node_dir}/head"
    units = {
        RAY_UNIT: ray_unit(node, ray, [("ExecStartPre", command("/bin/sh", "-c", note))]),
        WATCHDOG_UNIT: daemon_unit(
            node, "jobsvc: drains this node in time, ends it without a head", "-m", "jobsvc.node_watchdog"
        ),
    }
    if guard_options is not None:
        words = ("-m", "jobsvc", "guard", *guard_options)
        units[GUARD_UNIT] = daemon_unit(node, "jobsvc: brings back a head that is gone", *words)
    return units


def ray_unit(node: Node, words: Iterable[str], before: Section, wants: str | None = None) -> str:
    """Ray, in one control group: whatever it left running ends with it."""
    return unit_text(
        node,
        [
            ("Description", "jobsvc: Ray on this node"),
            ("Wants", f"network-online.target {wants or ''}".strip()),
            ("After", "network-online.target"),
            ("StartLimitIntervalSec", "0"),
        ],
        [
            ("Type", "simple"),
            *before,
            ("ExecStart", command(*words)),
            ("Restart", "always"),
            ("RestartSec", "1"),
            ("TimeoutStopSec", "20"),
            ("KillMode", "mixed"),  # once `ray start` has ended, nobody waits for what it left
            ("LimitNOFILE", str(OPEN_FILES)),
            ("TasksMax", "infinity"),
            ("OOMScoreAdjust", "-500"),
        ],
    )


def daemon_unit(node: Node, description: str, *words: str) -> str:
    return unit_text(
        node,
        [
            ("Description", description),
            ("Wants", "network-online.target"),
            ("After", "network-online.target"),
            ("StartLimitIntervalSec", "0"),
        ],
        [
            ("Type", "simple"),
            ("ExecStart", command(node.python, *words)),
            ("Restart", "always"),
            ("RestartSec", "2"),
            ("OOMScoreAdjust", "-500"),
        ],
    )


def unit_text(node: Node, unit: Section, service: Section) -> str:
    """A unit file: of this user, in this environment, started at boot."""
    service = [
        *service,
        ("User", node.user),
        ("WorkingDirectory", node.home),
        *(("RuntimeDirectory", "jobsvc"), ("RuntimeDirectoryPreserve", "yes")),
        *(("Environment", quoted(f"{name}={value}")) for name, value in node.environment.items()),
    ]
    sections = {"Unit": unit, "Service": service, "Install": [("WantedBy", "multi-user.target")]}
    lines = ["# Written by `jobsvc node`, which replaces it.", f"# code {node.code}"]
    for name, entries in sections.items():
        lines += ["", f"[{name}]", *(f"{key}={value}" for key, value in entries)]
    return "\n".join(lines) + "\n"


def command(*words: str) -> str:
    """One command line as systemd reads it: `$` would be a variable there."""
    return " ".join(word if PLAIN_WORD.fullmatch(word) else quoted(word).replace("$", "$$") for word in words)


def quoted(text: str) -> str:
    """One word as systemd reads it: backslashes, quotes and `%` mean something there."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("%", "%%")
    return f'"{escaped}"'


# --- how they get there --------------------------------------------------------------------------------


class Systemd:
    """The rim: files under /etc/systemd/system and calls of systemctl, with sudo where that is needed."""

    def __init__(
        self,
        *,
        is_root: bool,
        folder: Path = Path("/etc/systemd/system"),
        booted: Path = SYSTEMD_BOOTED,
        run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run,
    ) -> None:
        self._sudo = [] if is_root else ["sudo", "-n"]
        self._folder = folder
        self._booted = booted
        self._run = run

    def check(self) -> None:
        """Raises Unavailable where there is no systemd to supervise anything."""
        if not self._booted.is_dir():
            raise Unavailable(
                "this machine is not run by systemd (a container?), which `jobsvc node` needs to keep Ray"
                " running; use `jobsvc up --ray-address HOST:PORT` for a Ray that something else supervises"
            )

    def installed(self, name: str) -> str | None:
        try:
            return (self._folder / name).read_text()
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str) -> None:
        self._call([*self._sudo, "tee", str(self._folder / name)], text)

    def systemctl(self, *words: str) -> None:
        self._call([*self._sudo, "systemctl", *words])

    def is_active(self, name: str) -> bool:
        return self._try(["systemctl", "is-active", "--quiet", name]).returncode == 0

    def last_lines(self, name: str, count: int) -> str:
        words = ["journalctl", "--unit", name, "--lines", str(count), "--no-pager", "--output", "cat"]
        return self._try([*self._sudo, *words]).stdout

    def _call(self, words: list[str], text: str | None = None) -> None:
        done = self._try(words, text)
        if done.returncode != 0:
            raise Unavailable(f"`{' '.join(words)}` failed: {done.stderr.strip() or done.returncode}")

    def _try(self, words: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
        try:
            return self._run(
                words, input=text, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"`{' '.join(words)}` failed: {error}") from error


def install(systemd: Systemd, units: Units, *, restart: bool = False) -> list[str]:
    """Bring these units to be what is installed and running. Returns those that were started, or again.

    What is installed with this text and runs is left alone.
    """
    changed = [name for name, text in units.items() if systemd.installed(name) != text]
    for name in changed:
        systemd.write(name, units[name])
    if changed:
        systemd.systemctl("daemon-reload")
        systemd.systemctl("enable", *changed)
    started = []
    for name in units:
        again = (restart or name in changed) and name not in NEVER_RESTARTED
        if again or not systemd.is_active(name):
            # without waiting: a start of the service takes as long as Ray does
            blocking = () if name == RAY_UNIT else ("--no-block",)
            systemd.systemctl(*blocking, "restart" if again else "start", name)
            started.append(name)
    return started
