"""Whether the last head is to be followed by another: what was seen of it, and what follows from that.

A head that is ended although it lived costs a minute of service; one that is dead and is kept costs the
service. So each row needs knowledge, not the lack of it, and the first that fits decides:

| what was seen | verdict |
|---|---|
| its GCS port answers this machine | it lives |
| EC2: ended, stopped or not there, and no other is up, for `gone_seconds` (two looks) | dead |
| it has answered a question in the store (`head_pulse`), whatever EC2 says of its health | it lives |
| it is up, and no question to it is known to lie in the store | nothing is known |
| another is up in its place, unanswered for `hold_seconds`: it does not come up | dead |
| it is up, silent and unanswered for `head_silent_seconds`, and EC2's own checks call it impaired | dead |
| it is up, silent and unanswered for three times as long: a head that reboots is back by then | dead |

So it takes two ways that are silent at once, the direct one and the one by the store, before a machine
that EC2 calls running is ended. What each fault looks like from here:

- Only the network between this machine and the head is cut: it answers in the store, for as long as that
  lasts.
- The head cannot reach the store, and this machine sees its port: it lives.
- This machine cannot reach the store: nothing is known, and nobody is ended. (A claim could not be made
  either.)
- Its GCS is dead and systemd cannot start it, or the machine hangs: both ways are silent, and time runs.
- The head is cut off from this machine *and* from the store: it looks like one that hangs, and is no use
  either, because what is on it can commit nothing. It is replaced.

`seconds` is how long this very picture was watched: by one process, on its monotonic clock, with no long
gap.
"""

from __future__ import annotations

import enum

import msgspec

from .head_pulse import Sign
from .node_settings import GuardSettings


class Ec2Says(enum.Enum):
    GONE = "no head is up"
    COMING = "another head is up"
    RUNS = "it runs"


class Verdict(enum.Enum):
    LIVES = "it lives"
    UNSURE = "not known yet"
    DEAD = "another head is needed"


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """One look at the head that was the last to be seen alive."""

    ec2: Ec2Says
    port_answers: bool = False
    store: Sign = Sign.NOT_ASKED
    seconds: float = 0.0
    is_impaired: bool = False


def judge(seen: Evidence, settings: GuardSettings) -> Verdict:
    if seen.port_answers:
        return Verdict.LIVES
    if seen.ec2 is Ec2Says.GONE:
        return _dead_after(settings.gone_seconds, seen)
    if seen.store is Sign.ANSWERED:
        return Verdict.LIVES
    if seen.store is Sign.NOT_ASKED:
        return Verdict.UNSURE
    if seen.ec2 is Ec2Says.COMING:
        return _dead_after(settings.hold_seconds, seen)
    return _dead_after(settings.head_silent_seconds * (1 if seen.is_impaired else 3), seen)


def _dead_after(seconds: float, seen: Evidence) -> Verdict:
    return Verdict.DEAD if seen.seconds >= seconds else Verdict.UNSURE
