"""Who may speak to the service (P10)."""

from __future__ import annotations

import hmac
import ipaddress

from .errors import InvalidRequest


def is_loopback(host: str) -> bool:
    """True if only this machine can reach what is bound to this host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_bind(host: str, token: str | None) -> None:
    """Refuse to be reachable from elsewhere without a token, and a token that no header could carry."""
    if token and not (token.strip() and token.strip().isascii() and token.strip().isprintable()):
        raise InvalidRequest("must be printable ASCII, and more than blanks", "JOBSVC_TOKEN")
    if not is_loopback(host) and not token:
        raise InvalidRequest(f"{host!r} is reachable from other machines: set JOBSVC_TOKEN", "host")


def token_matches(expected: str, presented: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(expected.encode(), presented.encode("utf-8", "surrogateescape"))
