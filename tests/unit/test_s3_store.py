"""What an answer of S3 means, seen through a proxy that loses answers in front of a real server."""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from botocore import exceptions as boto

from jobsvc import s3_store
from jobsvc.directory_store import DirectoryObjectStore
from jobsvc.errors import InvalidRequest, StoreUnfit
from jobsvc.object_store import PutOutcome, StoreError, date_of
from jobsvc.s3_store import Meaning, S3ObjectStore, meaning_of, open_store, parse_s3_url
from jobsvc.settings import Settings
from tests.s3_fault_proxy import RunningProxy, running_proxy
from tests.s3_server import REPOSITORY, S3Server, free_port, running_s3

CREATED, EXISTS, UNKNOWN = PutOutcome.CREATED, PutOutcome.EXISTS, PutOutcome.UNKNOWN
prefixes = (f"s3-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with running_s3() as server:
        yield server


@pytest.fixture(scope="module")
def running(s3: S3Server) -> Iterator[RunningProxy]:
    with running_proxy(s3.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def proxy(running: RunningProxy) -> Iterator[RunningProxy]:
    yield running
    running.set("pass")


@pytest.fixture
def store(s3: S3Server, proxy: RunningProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3ObjectStore]:
    """A store behind the proxy, with short timeouts."""
    monkeypatch.setattr(s3_store, "READ_TIMEOUT_SECONDS", 0.5)
    settings = s3.settings(next(prefixes), s3_endpoint_url=proxy.endpoint_url)
    opened = open_store(settings)
    assert isinstance(opened, S3ObjectStore)
    yield opened
    opened.close()


def test_the_store_tells_its_own_time(store: S3ObjectStore) -> None:
    async def story() -> float | None:
        assert date_of(store) is None
        await store.put_new("dated", b"1")
        dated = date_of(store)
        assert dated is not None
        return dated.ahead_of(time.time() - 60.0, asyncio.get_running_loop().time())

    assert asyncio.run(story()) == pytest.approx(60.0, abs=2.0)


# --- puts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["store_then_500", "store_then_drop", "store_then_hang"])
def test_a_put_that_landed_without_an_answer_is_unknown_and_then_there(
    store: S3ObjectStore, proxy: RunningProxy, mode: str
) -> None:
    """Given an answer that gets lost after the server stored the object, when the put is made, then it is
    UNKNOWN, the server saw it once (no hidden retry), and the same put again says EXISTS."""

    async def story() -> None:
        proxy.set(mode, method="PUT")
        assert await store.put_new("log/0", b"mine") is UNKNOWN
        assert proxy.met() == 1
        assert store.requests["put"] == 1
        proxy.set("pass")
        assert await store.put_new("log/0", b"mine") is EXISTS
        assert await store.get("log/0") == b"mine"

    asyncio.run(story())


@pytest.mark.parametrize("mode", ["fail_500", "reset", "hang"])
def test_a_put_that_never_arrived_is_unknown_and_can_be_sent_again(
    store: S3ObjectStore, proxy: RunningProxy, mode: str
) -> None:
    async def story() -> None:
        proxy.set(mode, method="PUT")
        assert await store.put_new("log/0", b"mine") is UNKNOWN
        assert proxy.met() == 1
        assert await store.get("log/0") is None
        proxy.set("pass")
        assert await store.put_new("log/0", b"mine") is CREATED

    asyncio.run(story())


def test_a_slow_put_is_created_and_a_too_slow_one_lands_late(
    store: S3ObjectStore, proxy: RunningProxy
) -> None:
    async def story() -> None:
        proxy.set("slow", seconds=0.2)
        assert await store.put_new("log/0", b"mine") is CREATED
        proxy.set("slow", seconds=1.0, method="PUT")
        assert await store.put_new("log/1", b"mine") is UNKNOWN
        assert await store.get("log/1") is None  # a 404 after UNKNOWN proves nothing …
        assert await _becomes(lambda: store.get("log/1"), b"mine")  # … since it may still land

    asyncio.run(story())


def test_big_puts_pass_the_proxy_whole(store: S3ObjectStore) -> None:
    body = bytes(range(256)) * 8192

    async def story() -> None:
        assert await store.put_new("results/big", body) is CREATED
        assert await store.get("results/big") == body

    asyncio.run(story())


def test_a_server_that_is_not_there_is_unknown_soon(s3: S3Server) -> None:
    store = open_store(s3.settings("p", s3_endpoint_url=f"http://127.0.0.1:{free_port()}"))

    async def story() -> None:
        started = time.monotonic()
        assert await store.put_new("a", b"") is UNKNOWN
        with pytest.raises(StoreError):
            await store.get("a")
        assert time.monotonic() - started < 8

    asyncio.run(story())


def test_a_server_that_takes_connections_and_no_more_is_unknown_in_time(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_store, "READ_TIMEOUT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        store = open_store(s3.settings("p", s3_endpoint_url=url))
        assert asyncio.run(store.put_new("a", b"")) is UNKNOWN


# --- reads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fail_500", "store_then_drop", "reset"])
def test_reads_are_tried_again(store: S3ObjectStore, proxy: RunningProxy, mode: str) -> None:
    async def story() -> None:
        await store.put_new("a", b"bytes")
        reads: list[tuple[str, Callable[[], Awaitable[Any]], Any]] = [
            ("get", lambda: store.get("a"), b"bytes"),
            ("list", lambda: store.list(""), ["a"]),
            ("delete", lambda: store.delete("a"), None),
        ]
        for kind, read, expected in reads:
            proxy.set(mode, times=1)
            before = store.requests[kind]
            assert await read() == expected
            assert store.requests[kind] == before + 2  # both attempts are billed, so both are counted

    asyncio.run(story())


def test_reads_that_stay_without_an_answer_are_store_errors(
    store: S3ObjectStore, proxy: RunningProxy
) -> None:
    async def story() -> None:
        proxy.set("fail_500")
        for read in (store.get("a"), store.list(""), store.delete("a"), store.probe()):
            with pytest.raises(StoreError):
                await read

    asyncio.run(story())


# --- what trying again does not mend --------------------------------------------------------------


def test_a_bucket_that_does_not_exist_is_unfit_for_every_request(s3: S3Server) -> None:
    store = open_store(Settings(data="s3://no-such-bucket/p", s3_endpoint_url=s3.endpoint_url))

    async def story() -> None:
        for request in (store.put_new("a", b""), store.get("a"), store.list(""), store.probe()):
            with pytest.raises(StoreUnfit, match="NoSuchBucket"):
                await request

    asyncio.run(story())


def _client_error(code: str, status: int) -> Exception:
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error: Exception = boto.ClientError(response, "PutObject")
    return error


@pytest.mark.parametrize(
    ("code", "status", "meaning"),
    [
        ("BadDigest", 400, Meaning.UNKNOWN),
        ("PreconditionFailed", 412, Meaning.EXISTS),
        ("412", 412, Meaning.EXISTS),
        ("ConditionalRequestConflict", 409, Meaning.UNKNOWN),
        ("OperationAborted", 409, Meaning.UNKNOWN),
        ("InternalError", 500, Meaning.UNKNOWN),
        ("SlowDown", 503, Meaning.UNKNOWN),
        ("ServiceUnavailable", 503, Meaning.UNKNOWN),
        ("", 502, Meaning.UNKNOWN),
        ("", 0, Meaning.UNKNOWN),
        ("RequestTimeout", 400, Meaning.UNKNOWN),
        ("ExpiredToken", 400, Meaning.UNKNOWN),
        ("TooManyRequests", 429, Meaning.UNKNOWN),
        ("NoSuchKey", 404, Meaning.ABSENT),
        ("404", 404, Meaning.ABSENT),
        ("InvalidRange", 416, Meaning.BEYOND),
        ("NoSuchBucket", 404, Meaning.UNFIT),
        ("AccessDenied", 403, Meaning.UNFIT),
        ("SignatureDoesNotMatch", 403, Meaning.UNFIT),
        ("InvalidAccessKeyId", 403, Meaning.UNFIT),
        ("RequestTimeTooSkewed", 403, Meaning.UNFIT),
        ("InvalidArgument", 400, Meaning.UNFIT),
        ("EntityTooLarge", 400, Meaning.UNFIT),
        ("PermanentRedirect", 301, Meaning.UNFIT),
        ("NotImplemented", 501, Meaning.UNFIT),
    ],
)
def test_what_an_error_code_means(code: str, status: int, meaning: Meaning) -> None:
    assert meaning_of(_client_error(code, status)) is meaning


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (boto.ReadTimeoutError(endpoint_url="u"), Meaning.UNKNOWN),
        (boto.ConnectTimeoutError(endpoint_url="u"), Meaning.UNKNOWN),
        (boto.ConnectionClosedError(endpoint_url="u"), Meaning.UNKNOWN),
        (boto.EndpointConnectionError(endpoint_url="u"), Meaning.UNKNOWN),
        (boto.ResponseStreamingError(error="cut"), Meaning.UNKNOWN),
        (boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), Meaning.UNKNOWN),
        (boto.MetadataRetrievalError(error_msg="no"), Meaning.UNKNOWN),
        (ConnectionResetError(), Meaning.UNKNOWN),
        (boto.NoCredentialsError(), Meaning.UNFIT),
    ],
)
def test_what_a_broken_connection_means(error: Exception, meaning: Meaning) -> None:
    assert meaning_of(error) is meaning


def test_a_defect_of_ours_is_not_translated() -> None:
    for defect in (TypeError("x"), boto.ParamValidationError(report="x")):
        with pytest.raises(type(defect)):
            meaning_of(defect)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("InternalError", StoreError),
        ("SlowDown", StoreError),
        ("AccessDenied", StoreUnfit),
        ("NoSuchKey", None),
    ],
)
def test_one_key_of_many_that_is_not_deleted_is_not_passed_over(
    store: S3ObjectStore, monkeypatch: pytest.MonkeyPatch, code: str, expected: type[Exception] | None
) -> None:
    def answer(**_: Any) -> dict[str, Any]:
        return {"Errors": [{"Key": "b", "Code": code, "Message": "because"}]}

    monkeypatch.setattr(store._read_client, "delete_objects", answer)
    if expected is None:
        asyncio.run(store.delete_many(["a", "b"]))
    else:
        with pytest.raises(expected, match="because"):
            asyncio.run(store.delete_many(["a", "b"]))


def test_a_server_that_knows_no_delete_objects_is_asked_key_by_key(
    store: S3ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise _client_error("NotImplemented", 501)

    async def story() -> None:
        for key in ("a", "b", "c"):
            await store.put_new(key, b"x")
        await store.delete_many(["a", "b"])
        assert await store.list("") == ["c"]

    monkeypatch.setattr(store._read_client, "delete_objects", refuse)
    asyncio.run(story())


def test_an_answer_that_means_no_is_unfit_for_a_put(
    store: S3ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise _client_error("AccessDenied", 403)

    monkeypatch.setattr(store._put_client, "put_object", refuse)
    with pytest.raises(StoreUnfit, match="trying again will not change it"):
        asyncio.run(store.put_new("a", b""))


# --- what the operator may have set on the bucket ------------------------------------------------


@pytest.fixture
def rules(s3: S3Server) -> Iterator[Callable[[dict[str, Any]], None]]:
    client = s3.client()

    def put(rule: dict[str, Any]) -> None:
        client.put_bucket_lifecycle_configuration(
            Bucket=s3.bucket, LifecycleConfiguration={"Rules": [{"ID": "old", "Status": "Enabled", **rule}]}
        )

    yield put
    client.delete_bucket_lifecycle(Bucket=s3.bucket)


@pytest.mark.parametrize("prefix", ["", "pro", "prod", "prod/", "prod/log/"])
def test_a_rule_that_would_delete_the_journal_is_refused(
    s3: S3Server, rules: Callable[[dict[str, Any]], None], prefix: str
) -> None:
    rules({"Filter": {"Prefix": prefix}, "Expiration": {"Days": 30}})
    with pytest.raises(StoreUnfit, match="'old'"):
        asyncio.run(open_store(s3.settings("prod")).probe())


@pytest.mark.parametrize(
    "rule",
    [
        {"Filter": {"Prefix": "prod2/"}, "Expiration": {"Days": 30}},
        {"Filter": {"Prefix": "prod/finished/"}, "Expiration": {"Days": 30}},
        {"Filter": {"Prefix": ""}, "Expiration": {"Days": 30}, "Status": "Disabled"},
        {"Filter": {"Prefix": ""}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}},
        {"Filter": {"Prefix": ""}, "NoncurrentVersionExpiration": {"NoncurrentDays": 1}},
        {"Filter": {"Tag": {"Key": "k", "Value": "v"}}, "Expiration": {"Days": 30}},
    ],
)
def test_a_rule_that_leaves_the_journal_alone_is_accepted(
    s3: S3Server, rules: Callable[[dict[str, Any]], None], rule: dict[str, Any]
) -> None:
    rules(rule)
    assert asyncio.run(open_store(s3.settings("prod")).probe()) == []


def test_versions_and_archive_classes_are_worth_a_warning(
    s3: S3Server, rules: Callable[[dict[str, Any]], None]
) -> None:
    rules({"Filter": {"Prefix": ""}, "Transitions": [{"Days": 30, "StorageClass": "GLACIER"}]})
    client = s3.client()
    client.put_bucket_versioning(Bucket=s3.bucket, VersioningConfiguration={"Status": "Enabled"})
    try:
        warnings = asyncio.run(open_store(s3.settings("prod")).probe())
    finally:
        client.put_bucket_versioning(Bucket=s3.bucket, VersioningConfiguration={"Status": "Suspended"})
    assert ["storage class" in warnings[0], "old versions" in warnings[1]] == [True, True]


@pytest.mark.parametrize("code", ["AccessDenied", "NotImplemented"])
def test_a_bucket_whose_rules_may_not_be_read_is_worth_a_warning(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    store = open_store(s3.settings(next(prefixes)))
    assert isinstance(store, S3ObjectStore)

    def refuse(**_: Any) -> None:
        raise _client_error(code, 403)

    monkeypatch.setattr(store._read_client, "get_bucket_lifecycle_configuration", refuse)
    (warning,) = asyncio.run(store.probe())
    assert "lifecycle" in warning
    assert code in warning


# --- names ----------------------------------------------------------------------------------------


def test_the_place_of_the_data_is_parsed() -> None:
    assert parse_s3_url("s3://bucket/some/prefix") == ("bucket", "some/prefix")
    assert parse_s3_url("s3://bucket/prefix/") == ("bucket", "prefix")
    assert parse_s3_url("s3://bucket") == ("bucket", "")
    assert parse_s3_url("s3://bucket/") == ("bucket", "")


@pytest.mark.parametrize(
    "data",
    [
        "",
        "s3://",
        "s3:///prefix",
        "s3://ab/p",
        "s3://Bucket/p",
        "s3://bucket/a//b",
        "s3://bucket/../p",
        "gs://b/p",
    ],
)
def test_a_place_that_is_none_names_the_field(data: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        open_store(Settings(data=data))
    assert caught.value.field == "data"


@pytest.mark.parametrize("address", ["foo", "http://bad host"])
def test_an_endpoint_that_is_none_names_the_field(address: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        open_store(Settings(data="s3://bucket/prefix", s3_endpoint_url=address))
    assert refused.value.field == "s3_endpoint_url"


def test_a_directory_needs_no_boto3(tmp_path: Any) -> None:
    assert isinstance(open_store(Settings(data=str(tmp_path))), DirectoryObjectStore)
    source = "import sys, jobsvc.s3_store as s; assert not {'boto3', 'botocore'} & set(sys.modules)"

    subprocess.run([sys.executable, "-c", source], check=True, cwd=REPOSITORY)


async def _becomes(read: Callable[[], Awaitable[Any]], expected: Any, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if await read() == expected:
            return True
        await asyncio.sleep(0.02)
    return False
