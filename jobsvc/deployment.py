"""One run of `serve_app`, the program that puts a service into a Ray, and what it said in one line.

What Ray says when something goes wrong is pages long. The line that tells most goes to the operator, all of
it into a file of the run folder, which the line names.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .deployed import Deployed
from .discovery import ServiceInfo, secret_file
from .errors import InvalidRequest, Unavailable
from .placed import EXIT_REFUSED
from .ray_head import last_line


class NotDeployed(Unavailable):
    """Managers or Serve did not start: a port was taken meanwhile, or what a second try shows again."""


class Deployment:
    """`serve_app` in a process of its own; it begins to load its modules while Ray starts."""

    def __init__(
        self,
        info: ServiceInfo,
        environment: Mapping[str, str],
        run_dir: Path,
        *words: str,
        is_guest: bool,
        folder: str | None = None,
    ) -> None:
        self._is_guest = is_guest
        self._log = run_dir / f"{info.service}.deployment.log"
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", "from jobsvc.serve_app import main; main()"),
                *("--address", info.ray_address, *words),
                *(("--token-file", info.token_file) if info.token_file else ()),
                *(("--guest",) if is_guest else ()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
        )

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def go(self, deployed: Deployed) -> str:
        """Ray is there: deploy. Returns its answer, or raises what it said on one line."""
        answer, said = self._process.communicate(deployed.encoded())
        code = self._process.returncode
        if not code:
            return answer.strip()
        line = last_line(said) or f"exit code {code}"
        if code == EXIT_REFUSED:
            raise InvalidRequest(line)
        if len(said.strip().splitlines()) > 1:
            line += f"; all that was said is in {secret_file(self._log, said)}"
        error = Unavailable if self._is_guest else NotDeployed
        raise error(f"the service could not be put into Ray: {line}")
