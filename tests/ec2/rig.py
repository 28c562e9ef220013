"""EC2 in a box: real `ray up`, and all that comes after, on one Linux machine and without AWS.

moto answers the EC2, IAM and STS APIs, ministack S3. Each instance that EC2 says is alive is a host of its
own: a network namespace with the instance's private address, pid, mount, uts, ipc and cgroup namespaces, a
disk of its own, and a real systemd with an sshd, sudo and instance metadata. Nothing leaves the namespaces.

    with Rig(tmp_path) as rig, rig.inside():
        rig.operator(["ray", "up", "-y", "--no-config-cache", "cluster.yaml"])

By hand, as root, until SIGTERM or Ctrl-C:

    python -m tests.ec2.rig --state DIR
    DIR/operator ray up -y --no-config-cache cluster.yaml     # any command, on the operator's machine
    DIR/host i-0123 journalctl -u jobsvc-ray                  # any command, on a host, as root
    DIR/rig partition i-0123 '["s3"]'                         # any of the methods below

The operator's machine is a namespace without a host. `rig.inside()` puts the calling thread there, and what
it starts: from then on `httpx` reaches http://PRIVATE-IP:8000 and `boto3` the rig's AWS. (A veth into the
machine's own namespace would need addresses that are free there, and let only one rig run at a time.)

DIR gets: `env` (the operator's shell exports), `key` and `key.pub` (SSH, user ubuntu, all hosts; the cluster
file's `ssh_private_key`), `events.log`, `ec2.log`, `s3.log`, `operator-*.log`, and for each instance
`hosts/ID/console.log` and its journal, also after it is gone:
`journalctl -D DIR/hosts/ID/written/var/log/journal`.

Real: Ray, SSH, systemd with units and reboots, sudo, the kernel's network. Played: EC2's answers (moto: an
instance runs at once), IAM (policies are stored and not enforced), prices, images (every instance boots this
machine's files), and the speed of boots (a second). Credentials on a host come from its instance profile.

Needs root, and of Debian: iproute2 openssh-server rsync sudo curl dbus systemd util-linux. `missing()` says
what is not there.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.s3_server import REPOSITORY

from . import rig_net
from .rig_disk import USER, host_path
from .rig_hosts import NotUp, cgroup_root, remove_cgroup
from .rig_keeper import Keeper, moment
from .rig_net import Network, inside
from .rig_orders import OrderServer, tell
from .rig_services import Instance, Services

NET = "172.31"  # of moto's default VPC, whose subnets leave 255 free
GATEWAY_IP, EC2_IP, OPERATOR_IP, S3_IP = (f"{NET}.255.{number}" for number in (1, 2, 3, 4))
MACHINES = {"ec2": EC2_IP, "operator": OPERATOR_IP, "s3": S3_IP}
REGION = "us-west-2"
IMAGE = "ami-12c6146b"  # one that moto has
TOOLS = (
    "ip",
    "tc",
    "unshare",
    "nsenter",
    "runuser",
    "sshd",
    "ssh",
    "ssh-keygen",
    "rsync",
    "sudo",
    "curl",
    "journalctl",
)
EVERYTHING = "everything"
CLEANING = Path("/run/ec2rig.lock")


def missing() -> str | None:
    """Why a rig cannot run here, or None."""
    if os.geteuid() != 0:
        return "needs root"
    if absent := [
        tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None
    ]:
        return f"needs {', '.join(absent)} (Debian: iproute2 openssh-server rsync sudo curl systemd)"
    if not all(Path("/lib/systemd", each).exists() for each in ("systemd", "system/dbus.service")):
        return "needs systemd and dbus installed (not running)"
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        return "needs a kernel with overlayfs"
    if cgroup_root() is None:
        return "needs a mounted cgroup2"
    if not Path("/bin").is_symlink():
        return "needs a merged /usr"
    if subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], check=False).returncode:
        return "may not make namespaces"
    return None


class NotHere(Exception):
    """The machine's kernel cannot do this; the message says what it lacks."""


class Rig:
    def __init__(self, state: Path, region: str = REGION) -> None:
        self.state, self.region = state.resolve(), region
        self.network = Network(GATEWAY_IP)
        self.services = Services(self.network, EC2_IP, S3_IP, region, self.state)
        self._cgroup = (cgroup_root() or Path("/sys/fs/cgroup")) / self.network.owner
        self._keeper: Keeper | None = None
        self._operator_runs = 0

    # --- up and down ---

    def start(self) -> None:
        clean_up_abandoned()
        self.state.mkdir(parents=True, exist_ok=True)
        try:
            self.network.open()
            for machine, ip in MACHINES.items():
                self.network.add(machine, ip)
            self.services.start()
            self._write_state()
            self.services.wait_until_they_answer()
            self._keeper = Keeper(
                self.network,
                self.services,
                self.state / "hosts",
                self._cgroup,
                (self.state / "key.pub").read_text(),
                self.host_environment,
                self._say,
                self.region,
            )
            self._keeper.start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End every host and service; the state folder's logs stay."""
        with contextlib.ExitStack() as ends:  # from the last to the first, whatever fails
            ends.callback(shutil.rmtree, _ssh_sockets(self.network.owner), ignore_errors=True)
            ends.callback(remove_cgroup, self._cgroup)
            ends.callback(self.network.close)
            ends.callback(self.services.close)
            if self._keeper is not None:
                ends.callback(self._keeper.close)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def keeper(self) -> Keeper:
        assert self._keeper is not None, "the rig is not started"
        return self._keeper

    # --- the operator ---

    @property
    def host_environment(self) -> dict[str, str]:
        """What a real instance would not need: where this AWS is."""
        return {
            "PATH": host_path(),
            "AWS_ENDPOINT_URL": self.services.ec2_url,
            "AWS_ENDPOINT_URL_S3": self.services.s3_url,
            "AWS_DEFAULT_REGION": self.region,
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    @property
    def environment(self) -> dict[str, str]:
        """The operator's: the same, keys of an account, and a home folder."""
        return {
            **self.host_environment,
            "AWS_ACCESS_KEY_ID": "operator",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "HOME": str(self.state / "operator-home"),
            "LOGNAME": self.network.owner,  # Ray names its folder for shared SSH connections after it
            "LANG": "C.UTF-8",
        }

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread on the operator's machine, with its environment for boto3."""
        before = dict(os.environ)
        with inside(self.network.namespace("operator")):
            os.environ.update(self.environment)
            try:
                yield
            finally:
                os.environ.clear()
                os.environ.update(before)

    def operator(
        self, command: Sequence[str], *, timeout: float = 300.0, check: bool = True, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run on the operator's machine. What it said is in the result, and in operator-N.log as it comes."""
        self._operator_runs += 1
        log_path = self.state / f"operator-{self._operator_runs}.log"
        with inside(self.network.namespace("operator")), open(log_path, "w") as log:
            process = subprocess.Popen(
                command,
                env=self.environment,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        done = subprocess.CompletedProcess(command, code, log_path.read_text(errors="replace"))
        if check and code != 0:
            raise AssertionError(f"{shlex.join(command)} ended with {code}:\n{done.stdout[-4000:]}")
        return done

    def client(self, service: str) -> Any:
        """A boto3 client of the operator; to be used inside()."""
        import boto3

        url = self.services.s3_url if service == "s3" else self.services.ec2_url
        return boto3.session.Session("operator", "secret", region_name=self.region).client(
            service, endpoint_url=url
        )

    def make_bucket(self, name: str) -> str:
        """Its URL, as `--data` takes it."""
        with inside(self.network.namespace("operator")):
            place = {"LocationConstraint": self.region}
            self.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration=place)
        return f"s3://{name}"

    # --- hosts ---

    def instances(self, *, alive: bool = True, kind: str = "", node_type: str = "") -> list[Instance]:
        """What EC2 says: those alive, or all that were."""
        self.keeper.check()
        return [
            each
            for each in self.services.instances()
            if (each.is_alive or not alive) and kind in ("", each.kind) and node_type in ("", each.node_type)
        ]

    def instance(self, instance_id: str) -> Instance:
        return next(each for each in self.instances(alive=False) if each.id == instance_id)

    def run_on(
        self, instance: str, command: str, *, user: str = USER, timeout: float = 60.0, check: bool = True
    ) -> str:
        """What a shell command says at the host's console, whatever its network does."""
        host = self.keeper.of(instance).host
        done = subprocess.run(
            host.enter(command, user), capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command!r} on {instance} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def ssh(self, instance: str, command: str, *, timeout: float = 60.0, check: bool = True) -> str:
        """What a shell command says when the operator logs in over the network."""
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=3")
        login = ["ssh", "-q", "-i", str(self.state / "key"), *(f"-o{each}" for each in options)]
        where = f"{USER}@{self.instance(instance).ip}"
        return self.operator([*login, where, command], timeout=timeout, check=check).stdout

    def launch(self, count: int = 1, **asked: Any) -> list[str]:
        """Instances without Ray, by RunInstances as the operator; their ids, when the hosts are up."""
        with inside(self.network.namespace("operator")):
            answer = self.client("ec2").run_instances(
                **{
                    "ImageId": IMAGE,
                    "InstanceType": "m5.large",
                    "MinCount": count,
                    "MaxCount": count,
                    "InstanceInitiatedShutdownBehavior": "terminate",
                    "MetadataOptions": {"HttpTokens": "required", "InstanceMetadataTags": "enabled"},
                    **asked,
                }
            )
        started = [each["InstanceId"] for each in answer["Instances"]]
        for each in started:
            self.wait_until_up(each)
        return started

    def wait_until_up(self, instance: str, seconds: float = 120.0) -> None:
        """Until the host has booted: its units are started, and it takes logins."""
        command = "systemctl is-system-running; ss -Hltn sport = :22"
        deadline = time.monotonic() + seconds
        said = ""
        while not ("running" in said or "degraded" in said) or ":22" not in said:
            if time.monotonic() > deadline:
                raise AssertionError(f"{instance} does not come up: {said}")
            self.keeper.check()
            with contextlib.suppress(KeyError, NotUp, subprocess.TimeoutExpired):
                said = self.run_on(instance, command, user="root", timeout=5, check=False)
            time.sleep(0.05)

    def boots(self, instance: str) -> int:
        return self.keeper.of(instance).boots

    def unplug(self, instance: str) -> None:
        """The host is gone at once, and EC2 says that the instance is terminated."""
        self.keeper.pull(instance, ec2_knows=True)

    def silence(self, instance: str) -> None:
        """The host is gone at once, and EC2 goes on saying that the instance runs."""
        self.keeper.pull(instance, ec2_knows=False)

    def reboot(self, instance: str, seconds: float = 120.0) -> None:
        """`systemctl reboot`, until the host is up again.

        As on a real machine, what runs outside of a unit (`ray start` from a login) and does not end when it
        is asked to holds this up for 90 seconds: Ray's GCS and monitor do.
        """
        before = self.boots(instance)
        self.run_on(instance, "systemctl reboot", user="root", check=False)
        deadline = time.monotonic() + seconds
        while self.boots(instance) == before:
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"{instance} does not reboot: see {self.keeper.of(instance).host.folder}"
                )
            time.sleep(0.05)
        self.wait_until_up(instance, seconds)

    # --- the network ---

    def partition(self, instance: str, from_: Sequence[str] | str = EVERYTHING) -> None:
        """No packet passes between a host and others: ids of instances, "s3", "ec2", "operator", or all."""
        if from_ == EVERYTHING:
            self.network.unplug(instance)
            return
        for other in [from_] if isinstance(from_, str) else from_:
            self.network.cut(instance, other)

    def heal(self, instance: str) -> None:
        """All that partition() did to this host."""
        self.network.mend(instance)

    def slow(self, instance: str, kilobits_per_second: float) -> None:
        """All that the host sends queues for a line so slow; 0 ends it. Raises NotHere without tbf."""
        namespace = self.network.namespace(instance)
        rig_net.run("tc", "-n", namespace, "qdisc", "del", "dev", "eth0", "root", check=False)
        if kilobits_per_second == 0:
            return
        try:
            rig_net.run(
                *("tc", "-n", namespace, "qdisc", "add", "dev", "eth0", "root"),
                *("tbf", "rate", f"{kilobits_per_second}kbit", "burst", "4kb", "latency", "10s"),
            )
        except RuntimeError as error:
            raise NotHere(f"no token bucket filter in this kernel: {error}") from None

    # --- EC2's moods ---

    def spot_notice(self, instance: str, seconds: float = 120.0) -> None:
        """The notice is in the metadata now; the instance is terminated when the time has passed."""
        said = {"action": "terminate", "time": moment(seconds)}
        self.keeper.notify(instance, "meta-data/spot/instance-action", said, ends_in=seconds)

    def rebalance_notice(self, instance: str) -> None:
        path = "meta-data/events/recommendations/rebalance"
        self.keeper.notify(instance, path, {"noticeTime": moment(0)})

    def refuse_capacity(self, refuse: bool | Sequence[str] = True) -> None:
        """RunInstances says InsufficientInstanceCapacity: for all types, for those named, or no more."""
        types = (["*"] if refuse else []) if isinstance(refuse, bool) else list(refuse)
        self.services.ask("rules", {"refused_types": types})

    def fail_api(self, share: float) -> None:
        """This share of all EC2, IAM and STS calls is answered with a 500 and not done."""
        self.services.ask("rules", {"failing_share": share})

    def calls(self, action: str = "") -> list[dict[str, Any]]:
        """What EC2, IAM and STS were asked: at, action, caller (a key's id), address, parameters, status."""
        return [each for each in self.services.ask("calls") if action in ("", each["action"])]

    # --- the state folder ---

    def _write_state(self) -> None:
        (self.state / "operator-home").mkdir(exist_ok=True)
        key = self.state / "key"
        if not key.exists():
            rig_net.run("ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", str(key))
        exports = [f"export {name}={shlex.quote(value)}\n" for name, value in self.environment.items()]
        (self.state / "env").write_text("".join(exports))
        namespace, hosts = self.network.namespace("operator"), self._cgroup
        state, python = shlex.quote(str(self.state)), shlex.quote(sys.executable)
        _write_program(self.state / "operator", f'. {state}/env\nexec ip netns exec {namespace} "$@"\n')
        _write_program(
            self.state / "rig",
            f'cd {shlex.quote(str(REPOSITORY))}\nexec {python} -m tests.ec2.rig --state {state} "$@"\n',
        )
        _write_program(
            self.state / "host",
            f"instance=$1; shift\npid=$(head -n 1 {hosts}/$instance/init.scope/cgroup.procs)\n"
            'exec nsenter -t "$pid" -m -p -u -i -n -- env HOME=/root "$@"\n',
        )

    def _say(self, text: str) -> None:
        with open(self.state / "events.log", "a") as log:
            log.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def _write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)


def _ssh_sockets(owner: str) -> Path:
    """Where Ray keeps the sockets of an operator's SSH connections, by the operator's login name."""
    return Path(f"/tmp/ray_ssh_{hashlib.sha256(owner.encode()).hexdigest()[:10]}")


def clean_up_abandoned() -> None:
    """What rigs left whose process was killed. One at a time: two rigs may start together."""
    with open(CLEANING, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for owner in rig_net.abandoned():
            rig_net.remove_namespaces(owner)
            if (root := cgroup_root()) is not None:
                remove_cgroup(root / owner)
            shutil.rmtree(_ssh_sockets(owner), ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Keeps a rig up until SIGTERM, or tells one what to do.")
    parser.add_argument("--state", type=Path, required=True, help="folder for keys, logs and disks")
    parser.add_argument("order", nargs="*", help="for the rig that runs with this folder: see rig_orders.py")
    options = parser.parse_args()
    orders = options.state.resolve() / "orders"
    if options.order:
        print(tell(orders, options.order))
        return
    if reason := missing():
        raise SystemExit(f"no rig here: {reason}")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Rig(options.state) as rig, OrderServer(rig, orders):
        print(f"ready: {rig.state}/operator COMMAND…, host INSTANCE COMMAND…, rig ORDER…", flush=True)
        while not stop.wait(0.5):
            rig.keeper.check()


if __name__ == "__main__":
    main()
