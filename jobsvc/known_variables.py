"""Which JOBSVC_… variables there are. One that nobody reads is most likely a setting that was misspelled."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

import msgspec

from .node_settings import GuardSettings, WatchdogSettings
from .settings import VARIABLE_PREFIX, Settings

# those that are no setting: of callers, of machines, and what our own processes tell each other
OTHERS = ("TOKEN", "URL", "RUN_DIR", "NODE_DIR", "STARTED_BY", "INSTANCE", "JOB_PROCESS")
OTHER_PREFIXES = ("JOBSVC_TEST_", "JOBSVC_EC2_", "JOBSVC_PICTURES")  # of the project's own tests


def known_variables() -> list[str]:
    names = [field.name for kind in (Settings, WatchdogSettings) for field in msgspec.structs.fields(kind)]
    guard = [f"GUARD_{field.name}" for field in msgspec.structs.fields(GuardSettings)]
    return [f"{VARIABLE_PREFIX}{name.upper()}" for name in (*names, *guard, *OTHERS)]


def complaints(environment: Mapping[str, str]) -> Iterator[str]:
    """A line for each JOBSVC_… variable that means nothing, with the name that may have been meant."""
    known = known_variables()
    for name in sorted(environment):
        if not name.startswith(VARIABLE_PREFIX) or name in known or name.startswith(OTHER_PREFIXES):
            continue
        close = difflib.get_close_matches(name, known, 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        yield f"{name} is no variable of jobsvc, and changes nothing{meant}"
