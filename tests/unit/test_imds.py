"""The metadata client, against a service that behaves as EC2's does, and against none."""

from __future__ import annotations

import httpx
import pytest

from jobsvc.imds import TOKEN_AGE_SECONDS_MAX, Imds, imds_client


class Service:
    """IMDSv2: nothing without a token that it gave out and still knows."""

    def __init__(self) -> None:
        self.answers = {"meta-data/instance-id": "i-1"}
        self.tokens: list[str] = []
        self.is_there = True
        self.now = 0.0
        client = httpx.Client(base_url="http://imds", transport=httpx.MockTransport(self._answer))
        self.imds = Imds(client, lambda: self.now)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if not self.is_there:
            raise httpx.ConnectTimeout("nobody there")
        path = request.url.path.removeprefix("/latest/")
        if request.method == "PUT" and path == "api/token":
            assert 1 <= int(request.headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21_600
            self.tokens.append(f"token-{len(self.tokens)}")
            return httpx.Response(200, text=self.tokens[-1])
        if request.headers.get("X-aws-ec2-metadata-token") != (self.tokens or [None])[-1]:
            return httpx.Response(401)
        return httpx.Response(200, text=self.answers[path]) if path in self.answers else httpx.Response(404)


def test_one_token_serves_many_questions() -> None:
    service = Service()
    assert [service.imds.instance_id() for _ in range(5)] == ["i-1"] * 5
    assert len(service.tokens) == 1


def test_a_token_is_renewed_before_it_ends() -> None:
    service = Service()
    service.imds.instance_id()
    service.now = TOKEN_AGE_SECONDS_MAX + 1
    assert service.imds.instance_id() == "i-1"
    assert len(service.tokens) == 2


def test_a_token_that_is_refused_is_renewed_at_once() -> None:
    service = Service()
    service.imds.instance_id()
    service.tokens.append("another machine's")
    assert service.imds.instance_id() == "i-1"


def test_no_notice_is_none() -> None:
    service = Service()
    assert service.imds.spot_notice() is None
    assert service.imds.rebalance_notice() is None


def test_notices_say_when() -> None:
    service = Service()
    service.answers["meta-data/spot/instance-action"] = '{"action":"terminate","time":"2033-05-18T03:35:20Z"}'
    service.answers["meta-data/events/recommendations/rebalance"] = '{"noticeTime":"2033-05-18T03:33:20Z"}'
    assert service.imds.spot_notice() == 2_000_000_120
    assert service.imds.rebalance_notice() == 2_000_000_000


def test_where_nobody_answers_all_is_none_and_later_is_well() -> None:
    service = Service()
    service.is_there = False
    assert service.imds.instance_id() is None
    assert service.imds.spot_notice() is None
    service.is_there = True
    assert service.imds.instance_id() == "i-1"


def test_a_service_that_refuses_every_token_is_none() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200 if request.method == "PUT" else 401))
    client = httpx.Client(base_url="http://imds", transport=transport)
    assert Imds(client, lambda: 0.0).instance_id() is None


def test_its_address_is_the_one_that_boto3_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    assert str(imds_client({}).base_url) == "http://169.254.169.254"
    chosen = imds_client({"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1338"})
    assert str(chosen.base_url) == "http://127.0.0.1:1338"
