"""The EC2, IAM and STS of a rig: moto's server behind a desk that refuses, fails and writes down, as told.

    python -m tests.ec2.rig_aws --host IP --port 80

Under /rig/ the rig itself asks and tells, past the desk and without being counted:

    GET  /rig/instances     every instance, as moto has it
    GET  /rig/calls         what was asked of EC2, by whom, and with which status it was answered
    POST /rig/rules         {"refused_types": ["*"] or names, "failing_share": 0.0 to 1.0}
    POST /rig/ended         {"instance": id, "how": "terminated" or "stopped", "reason": code}

Three things are made as EC2 does them where moto does not: RunInstances gives MaxCount instances (moto gives
MinCount), without a subnet it takes a default one, and an instance that ended by itself says why.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends
from moto.ec2.models.instances import StateReason
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
CALLER = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/")
NO_CAPACITY = "InsufficientInstanceCapacity"


class Desk:
    """What stands between the callers and moto (WSGI)."""

    def __init__(self, moto: Callable[[Environ, StartResponse], Iterable[bytes]], region: str) -> None:
        self._moto, self._region = moto, region
        self._lock = threading.Lock()
        self._random = random.Random(0)
        self._rules: dict[str, Any] = {"refused_types": [], "failing_share": 0.0}
        self._calls: list[dict[str, Any]] = []
        self._reboots: dict[str, int] = {}

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        path = environ["PATH_INFO"]
        if path.startswith("/rig/"):
            answer = self._rig(path.removeprefix("/rig/"), json.loads(body or b"{}"))
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(answer).encode()]
        return self._aws(environ, body, start_response)

    # --- callers ---

    def _aws(self, environ: Environ, body: bytes, start_response: StartResponse) -> Iterable[bytes]:
        form = dict(urllib.parse.parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
        call = self._write_down(environ, form)
        if code := self._refusal(form):
            call["status"] = 500
            start_response("500 Internal Server Error", [("Content-Type", "text/xml")])
            return [_error(code)]
        if form.get("Action") == "RunInstances":
            form["MinCount"] = form["MaxCount"]
            if not any(name.startswith(("SubnetId", "NetworkInterface.")) for name in form):
                form["SubnetId"] = self._default_subnet()
            body = urllib.parse.urlencode(form).encode()
        environ["wsgi.input"] = io.BytesIO(body)
        environ["CONTENT_LENGTH"] = str(len(body))

        def answered(status: str, *rest: Any) -> Any:
            call["status"] = int(status.split()[0])
            self._after(form, call["status"])
            return start_response(status, *rest)

        return self._moto(environ, answered)

    def _write_down(self, environ: Environ, form: dict[str, str]) -> dict[str, Any]:
        found = CALLER.search(environ.get("HTTP_AUTHORIZATION", ""))
        caller, region, service = found.groups() if found else ("", "", "")
        call = {
            "at": time.time(),
            "action": form.get("Action", environ["PATH_INFO"]),
            "service": service,
            "region": region,
            "caller": caller,
            "address": environ.get("REMOTE_ADDR", ""),
            "parameters": form,
            "status": 0,
        }
        self._calls.append(call)
        return call

    def _refusal(self, form: dict[str, str]) -> str | None:
        with self._lock:
            if self._random.random() < self._rules["failing_share"]:
                return "InternalError"
            refused = self._rules["refused_types"]
        if form.get("Action") == "RunInstances" and ("*" in refused or form.get("InstanceType") in refused):
            return NO_CAPACITY
        return None

    def _after(self, form: dict[str, str], status: int) -> None:
        if form.get("Action") == "RebootInstances" and status == 200:
            for key, instance in form.items():
                if key.startswith("InstanceId"):
                    self._reboots[instance] = self._reboots.get(instance, 0) + 1

    # --- the rig ---

    def _rig(self, what: str, said: dict[str, Any]) -> Any:
        if what == "instances":
            return [self._described(each) for each in self._instances()]
        if what == "calls":
            return list(self._calls)
        if what == "rules":
            with self._lock:
                self._rules |= said
            return self._rules
        if what == "ended":
            return self._ended(said["instance"], said["how"], said["reason"])
        raise KeyError(what)

    def _instances(self) -> list[Any]:
        backend = ec2_backends[DEFAULT_ACCOUNT_ID][self._region]
        return [each for group in list(backend.reservations.values()) for each in group.instances]

    def _default_subnet(self) -> str:
        subnets = ec2_backends[DEFAULT_ACCOUNT_ID][self._region].describe_subnets()
        return str(next(each.id for each in subnets if each.default_for_az in (True, "true")))

    def _described(self, instance: Any) -> dict[str, Any]:
        profile = instance.iam_instance_profile
        return {
            "id": instance.id,
            "ip": instance.private_ip or "",
            "type": instance.instance_type,
            "state": instance.state,
            "tags": {tag["key"]: tag["value"] for tag in instance.get_tags()},
            "spot": instance.lifecycle == "spot",
            "zone": instance.placement.zone or "",
            "shutdown": instance.instance_initiated_shutdown_behavior,
            "profile": _profile_name(profile) if profile else "",
            "tags_in_metadata": instance.metadata_options.instance_metadata_tags == "enabled",
            "reboots": self._reboots.get(instance.id, 0),
        }

    def _ended(self, instance_id: str, how: str, reason: str) -> bool:
        backend = ec2_backends[DEFAULT_ACCOUNT_ID][self._region]
        [instance] = backend.get_multi_instances_by_id([instance_id])
        if instance.state in ("terminated", "shutting-down"):
            return False
        instance.terminate() if how == "terminated" else instance.stop()
        instance.state_reason = StateReason(reason, reason)
        return True


class QuietHandler(MotoRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        if not self.path.startswith("/rig/"):  # asked five times a second
            super().log_request(code, size)


def _profile_name(profile: Any) -> str:
    if isinstance(profile, dict):
        return str(profile.get("Name") or profile.get("Arn", "")).rpartition("/")[2]
    return str(getattr(profile, "name", profile)).rpartition("/")[2]


def _error(code: str) -> bytes:
    text = "said by the rig"
    return (
        f"<Response><Errors><Error><Code>{code}</Code><Message>{text}</Message></Error></Errors>"
        "<RequestID>rig</RequestID></Response>"
    ).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description="EC2, IAM and STS for a rig.")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--region", required=True)
    options = parser.parse_args()
    moto = DomainDispatcherApplication(create_backend_app)
    desk = Desk(moto, options.region)
    # A server that binds by itself asks for its host's name first, and nobody answers that here.
    with socket.create_server((options.host, options.port), backlog=128) as listening:
        make_server(
            options.host,
            options.port,
            desk,
            threaded=True,
            request_handler=QuietHandler,
            fd=listening.fileno(),
        ).serve_forever()


if __name__ == "__main__":
    main()
