"""What EC2 tells a machine about itself: the instance metadata service, version 2.

It wants a token, which is fetched once and renewed when it has aged or is refused. Where the service does not
answer (no EC2, or a moment of trouble) everything is None: whoever asks will ask again in seconds.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping

import httpx
import msgspec

DEFAULT_URL = "http://169.254.169.254"
URL_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"  # boto3's own
TOKEN_SECONDS = 21_600
TOKEN_AGE_SECONDS_MAX = TOKEN_SECONDS / 2
TIMEOUT_SECONDS = 1.0


class _InstanceAction(msgspec.Struct):
    action: str
    time: str


class _Rebalance(msgspec.Struct):
    notice_time: str = msgspec.field(name="noticeTime")


class Imds:
    """The client. All of its answers may be None: there is no such thing, or nobody answered."""

    def __init__(self, client: httpx.Client, monotonic: Callable[[], float]) -> None:
        self._client = client
        self._monotonic = monotonic
        self._token: str | None = None
        self._token_at = 0.0

    def instance_id(self) -> str | None:
        return self._get("meta-data/instance-id")

    def spot_notice(self) -> float | None:
        """When EC2 will take this spot instance away (Unix seconds); about two minutes before that."""
        text = self._get("meta-data/spot/instance-action")
        return None if text is None else _seconds(msgspec.json.decode(text, type=_InstanceAction).time)

    def rebalance_notice(self) -> float | None:
        """Since when EC2 holds it likely that it will take this spot instance away (Unix seconds)."""
        text = self._get("meta-data/events/recommendations/rebalance")
        return None if text is None else _seconds(msgspec.json.decode(text, type=_Rebalance).notice_time)

    def _get(self, path: str) -> str | None:
        for _ in range(2):
            try:
                answer = self._client.get(
                    f"/latest/{path}", headers={"X-aws-ec2-metadata-token": self._fresh_token()}
                )
            except httpx.HTTPError:
                return None
            if answer.status_code != 401:
                return answer.text if answer.status_code == 200 else None
            self._token = None  # it has ended before its time
        return None

    def _fresh_token(self) -> str:
        now = self._monotonic()
        if self._token is None or now - self._token_at > TOKEN_AGE_SECONDS_MAX:
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
            answer = self._client.put("/latest/api/token", headers=headers)
            answer.raise_for_status()
            self._token, self._token_at = answer.text, now
        return self._token


def imds_client(environment: Mapping[str, str]) -> httpx.Client:
    """Never through a proxy: it would tell us about the proxy's machine."""
    url = environment.get(URL_VARIABLE) or DEFAULT_URL
    return httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS, trust_env=False)


def _seconds(text: str) -> float:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
