"""Waiting for machines. A look asks EC2 and a service: made fifty times a second it would keep both busy."""

from __future__ import annotations

from functools import partial

from tests.cluster.conftest import wait_until as look_until

LOOK_SECONDS = 0.2

wait_until = partial(look_until, every_seconds=LOOK_SECONDS)
