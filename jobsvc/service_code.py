"""The code of a service: which version of which module, so that nobody runs another one unnoticed.

It is fixed by `up` and by `reload`, which import the tasks, and handed to the workers by whoever leads. A
job process says what it has loaded; one whose code differs runs no jobs. Only modules of the project count,
not what is installed (`project_code`), and they are compared by name: the project's folder may be elsewhere
on other machines. A module that only one of the two has loaded is no difference, since what a module imports
may depend on where it is; whoever imports it by an edit has another text for that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

NAMED_MAX = 3  # modules that a text names
GRACE_SECONDS = 600.0


class ServiceCode(msgspec.Struct, array_like=True, frozen=True):
    """What the service's processes should have loaded."""

    modules: dict[str, str]  # name -> digest of its file
    tasks: list[str]
    grace_seconds: float = GRACE_SECONDS  # what runs with other code may go on for so long
    edition: str = ""  # another one with each reload: processes are renewed whatever has changed
    environments: dict[str, dict[str, Any]] = {}  # runtime_env of each pool that has one, as it was packed

    @property
    def digest(self) -> str:
        """Equal for equal code of one edition."""
        known = msgspec.msgpack.encode((sorted(self.modules.items()), sorted(self.tasks), self.edition))
        return hashlib.blake2b(known, digest_size=8).hexdigest()

    def environment_id(self, pool: str) -> str:
        """Equal for an equal runtime_env of a pool; empty where it has none."""
        environment = self.environments.get(pool)
        if not environment:
            return ""
        known = msgspec.json.encode(environment, order="deterministic")
        return hashlib.blake2b(known, digest_size=8).hexdigest()

    def is_like(self, other: ServiceCode) -> bool:
        """Whether the files say the same, whenever they were loaded."""
        return self.modules == other.modules and set(self.tasks) == set(other.tasks)

    def problem_of(self, modules: Mapping[str, str], tasks: Collection[str]) -> str | None:
        """Why a process that has loaded these must not run the service's jobs, in words."""
        differing = self.differing(modules)
        if differing:
            more = f" and {len(differing) - NAMED_MAX} more" if len(differing) > NAMED_MAX else ""
            names = ", ".join(differing[:NAMED_MAX]) + more
            return f"code differs from the service's ({names}): `jobsvc reload` brings it in"
        missing = sorted(set(self.tasks) - set(tasks))
        if missing:
            return f"the code here has no task {missing[0]!r}, and the service's has"
        return None

    def differing(self, modules: Mapping[str, str]) -> list[str]:
        """Names of the modules whose text is another one here."""
        return sorted(name for name, digest in modules.items() if self.modules.get(name, digest) != digest)
