"""The instance metadata service (IMDSv2) of one host, at 169.254.169.254 as its processes see it.

The server runs in the rig's process; only its socket is made in the host's namespace. What it says is
read from the instance at each request, so tags and notices change while the host runs.
"""

from __future__ import annotations

import json
import secrets
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from .rig_net import inside, run

ADDRESS = "169.254.169.254"
TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN_HEADER = "X-aws-ec2-metadata-token"
TTL_SECONDS_MAX = 21600

Answers = Callable[[], dict[str, str]]  # path below /latest/ -> text


class Handler(BaseHTTPRequestHandler):
    server: MetadataServer

    def do_PUT(self) -> None:
        ttl = self.headers.get(TTL_HEADER, "")
        if self.path != "/latest/api/token":
            self._answer(404, "not found")
        elif not ttl.isdigit() or not 1 <= int(ttl) <= TTL_SECONDS_MAX:
            self._answer(400, "bad ttl")
        else:
            token = secrets.token_urlsafe(16)
            self.server.tokens.add(token)
            self._answer(200, token)

    def do_GET(self) -> None:
        if self.headers.get(TOKEN_HEADER) not in self.server.tokens:
            self._answer(401, "a token is needed: PUT /latest/api/token")
            return
        path = self.path.partition("?")[0].removeprefix("/latest/")
        answers = self.server.answers()
        names = {key[len(path) :].partition("/")[0] for key in answers if key.startswith(path)}
        if path in answers:
            self._answer(200, answers[path])
        elif path.endswith("/") and names:
            self._answer(200, "\n".join(sorted(names)))
        else:
            self._answer(404, "not found")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: tests look at the hosts' own logs."""


class MetadataServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, namespace: str, answers: Answers) -> None:
        self.answers = answers
        self.tokens: set[str] = set()
        run("ip", "-n", namespace, "addr", "add", f"{ADDRESS}/32", "dev", "lo")
        with inside(namespace):
            super().__init__((ADDRESS, 80), Handler)
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True, name="imds").start()

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # without asking for the name of the address: nobody knows
        self.server_name, self.server_port = ADDRESS, 80

    def close(self) -> None:
        self.shutdown()
        self.server_close()


def role_answers(role: str, region: str) -> dict[str, str]:
    """Credentials of an instance profile; the key's id names the role, so a call says who made it."""
    credentials = {
        "Code": "Success",
        "Type": "AWS-HMAC",
        "LastUpdated": "2020-01-01T00:00:00Z",
        "AccessKeyId": f"role-{role}",
        "SecretAccessKey": "secret",
        "Token": "token",
        "Expiration": "2099-01-01T00:00:00Z",
    }
    return {
        f"meta-data/iam/security-credentials/{role}": json.dumps(credentials),
        "meta-data/iam/info": json.dumps({"Code": "Success", "InstanceProfileArn": role, "Region": region}),
    }
