"""Keeps hosts as EC2 has instances: boots, ends and reboots them, and tells EC2 which ended by themselves.

EC2's word is read five times a second. An instance that EC2 terminates or stops loses its host at once, as
by pulling the plug; that is harsher than EC2, which gives the system a moment to stop.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .rig_hosts import Host
from .rig_imds import MetadataServer, role_answers
from .rig_net import Network
from .rig_services import Instance, Services

LOOK_SECONDS = 0.2
HALTED = "Client.InstanceInitiatedShutdown"
PULLED = "Server.InternalError"
INTERRUPTED = "Server.SpotInstanceTermination"


@dataclass
class Kept:
    """A host and what the rig knows of it beyond EC2's word."""

    host: Host
    instance: Instance
    metadata: MetadataServer
    is_silent: bool = False  # down, although EC2 says that it runs
    is_down: bool = False  # stopped, or gone
    boots: int = 1
    reboots_done: int = 0
    notices: dict[str, str] = field(default_factory=dict)
    ends_at: float | None = None  # a spot interruption


class Keeper:
    def __init__(
        self,
        network: Network,
        services: Services,
        folder: Path,
        cgroup: Path,
        public_key: str,
        environment: Mapping[str, str],
        say: Callable[[str], None],
        region: str,
    ) -> None:
        self._network, self._services, self._folder, self._cgroup = network, services, folder, cgroup
        self._public_key, self._environment, self._say = public_key, environment, say
        self._region = region
        self._kept: dict[str, Kept] = {}
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="ec2-rig", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        with self._lock, contextlib.ExitStack() as ends:  # one that fails does not keep the others
            for each in self._kept.values():
                ends.callback(self._remove, each)

    def of(self, instance: str) -> Kept:
        self.check()
        with self._lock:
            if instance not in self._kept:
                raise KeyError(f"{instance} has no host")
            return self._kept[instance]

    def check(self) -> None:
        if self._error is not None:
            raise RuntimeError("the rig stopped keeping hosts") from self._error

    # --- what tests do to hosts ---

    def pull(self, instance: str, *, ec2_knows: bool) -> None:
        with self._lock:
            kept = self.of(instance)
            kept.is_silent = True
            kept.host.kill()
            self._say(f"PULLED {instance}")
        if ec2_knows:
            self._services.ask("ended", {"instance": instance, "how": "terminated", "reason": PULLED})

    def notify(self, instance: str, path: str, said: dict[str, str], ends_in: float | None = None) -> None:
        with self._lock:
            kept = self.of(instance)
            kept.notices[path] = json.dumps(said)
            if ends_in is not None:
                kept.ends_at = time.time() + ends_in
            self._say(f"NOTICE {instance} {path}")

    # --- following EC2 ---

    def _run(self) -> None:
        try:
            while not self._stop.wait(LOOK_SECONDS):
                for instance in self._services.instances():
                    with self._lock:
                        self._follow(instance)
        except Exception as error:  # whoever uses the rig next is told
            self._error = error
            self._say(f"BROKEN {error!r}")

    def _follow(self, instance: Instance) -> None:
        kept = self._kept.get(instance.id)
        if kept is None:
            if instance.is_alive:
                self._kept[instance.id] = self._create(instance)
            return
        kept.instance = instance
        if not instance.is_alive:
            self._take_down(kept)
        elif kept.is_down:
            kept.is_down = False
            self._boot(kept, "START")
        elif kept.is_silent:
            return
        elif not kept.host.is_up:
            self._fell(kept)
        elif instance.reboots > kept.reboots_done:
            kept.reboots_done = instance.reboots
            kept.host.kill()
            self._boot(kept, "REBOOT")
        elif kept.ends_at is not None and time.time() >= kept.ends_at:
            self._end(kept, "terminated", INTERRUPTED)

    def _create(self, instance: Instance) -> Kept:
        namespace = self._network.add(instance.id, instance.ip)
        host = Host(
            instance.id, instance.ip, self._folder / instance.id, namespace, self._cgroup / instance.id
        )
        host.create(self._public_key, self._environment)
        metadata = MetadataServer(namespace, lambda: self._metadata(instance.id))
        host.boot()
        self._say(f"BOOT {instance.id} {instance.ip} {instance.type}")
        return Kept(host, instance, metadata, reboots_done=instance.reboots)

    def _boot(self, kept: Kept, word: str) -> None:
        kept.host.boot()
        kept.boots += 1
        self._say(f"{word} {kept.instance.id}")

    def _fell(self, kept: Kept) -> None:
        """A host went down by itself."""
        word = kept.host.last_word()
        kept.host.kill()
        if word == "reboot":
            self._boot(kept, "REBOOT")
            return
        if word != "halt":
            self._say(f"CRASHED {kept.instance.id}: {word}")
        self._end(kept, "terminated" if kept.instance.shutdown == "terminate" else "stopped", HALTED)

    def _end(self, kept: Kept, how: str, reason: str) -> None:
        self._services.ask("ended", {"instance": kept.instance.id, "how": how, "reason": reason})
        self._say(f"{how.upper()} {kept.instance.id} {reason}")

    def _take_down(self, kept: Kept) -> None:
        if not kept.is_down:
            kept.host.kill()
            kept.is_down, kept.ends_at = True, None
            kept.notices.clear()
            self._say(f"DOWN {kept.instance.id} {kept.instance.state}")
        if kept.instance.state == "terminated":
            self._remove(kept)
            del self._kept[kept.instance.id]

    def _remove(self, kept: Kept) -> None:
        kept.host.remove()
        kept.metadata.close()
        self._network.remove(kept.instance.id)
        kept.host.remove_disk()

    # --- metadata ---

    def _metadata(self, instance_id: str) -> dict[str, str]:
        kept = self._kept.get(instance_id)
        if kept is None:  # just being made
            return {}
        instance = kept.instance
        answers = {
            "meta-data/instance-id": instance.id,
            "meta-data/instance-type": instance.type,
            "meta-data/instance-life-cycle": "spot" if instance.spot else "on-demand",
            "meta-data/local-ipv4": instance.ip,
            "meta-data/local-hostname": kept.host.name,
            "meta-data/placement/region": self._region,
            "meta-data/placement/availability-zone": instance.zone,
            "dynamic/instance-identity/document": json.dumps(
                {"instanceId": instance.id, "region": self._region, "privateIp": instance.ip}
            ),
            **kept.notices,
        }
        if instance.profile:
            answers |= role_answers(instance.profile, self._region)
        if instance.tags_in_metadata:
            answers |= {f"meta-data/tags/instance/{key}": value for key, value in instance.tags.items()}
        return answers


def moment(seconds_from_now: float) -> str:
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds_from_now)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
