"""The store on S3, or on anything that speaks it and keeps `If-None-Match: *`.

The one thing to get right is what a failed PUT means. boto3's own retries would send it again after a
lost answer and report our own success as 412, so the client for PUTs makes one attempt, and everything
that may or may not have landed is UNKNOWN. Reads are repeatable: a second client retries them.

`MEANINGS` is the whole translation. What it does not name goes by status: 5xx and broken connections
may have landed, anything else is a "no" that will stay one (access, bucket name, header not understood)
and is raised as StoreUnfit, since an UNKNOWN for ever would look like an outage that nobody can find.

boto3 blocks, so it runs in threads: a few for PUTs, others for the rest, so that no commit waits behind
a long LIST.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from .directory_store import DirectoryObjectStore
from .errors import InvalidRequest, StoreUnfit
from .object_store import (
    Keys,
    ObjectStore,
    PutOutcome,
    StoreDate,
    StoreError,
    Warnings,
    check_key,
    check_prefix,
    check_range,
    new_request_counts,
    prove_exclusive_create,
)
from .settings import Settings

T = TypeVar("T")

PUT_THREADS = 4
READ_THREADS = 16  # what one Python keeps busy: boto3 takes more than a millisecond for a GET
READ_ATTEMPTS = 3
CONNECT_TIMEOUT_SECONDS = 2
READ_TIMEOUT_SECONDS = 5
BUCKET_LENGTHS = range(3, 64)
BUCKET_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-")
# A rule on these may delete: history that is written for others and never read back.
EXPENDABLE = ("finished/",)
DELETED_AT_ONCE_MAX = 1_000  # S3's own limit
# What servers say that speak S3 and do not know DeleteObjects, or not with today's checksums.
KNOWS_NO_DELETE_OBJECTS = frozenset(
    {"NotImplemented", "MethodNotAllowed", "MissingContentMD5", "InvalidRequest", "MalformedXML"}
)
OPERATIONS = {
    "PutObject": "put",
    "GetObject": "get",
    "ListObjectsV2": "list",
    "DeleteObject": "delete",
    "DeleteObjects": "delete",
}


class Meaning(enum.Enum):
    EXISTS = "the key exists"
    UNKNOWN = "it may have landed, or may yet"
    ABSENT = "no such key"
    BEYOND = "the range begins past the end"
    UNFIT = "no, and it will stay a no"


MEANINGS: dict[str, Meaning] = {  # by error code; a code that is not here goes by its status
    "PreconditionFailed": Meaning.EXISTS,
    "ConditionalRequestConflict": Meaning.UNKNOWN,
    "NoSuchKey": Meaning.ABSENT,
    "NoSuchBucket": Meaning.UNFIT,
    "InvalidRange": Meaning.BEYOND,
    "RequestTimeout": Meaning.UNKNOWN,  # 400: the body came too slowly
    "ExpiredToken": Meaning.UNKNOWN,  # 400: credentials that are renewed by themselves
    "BadDigest": Meaning.UNKNOWN,  # 400: the body was damaged on its way
    "XAmzContentChecksumMismatch": Meaning.UNKNOWN,
    "TooManyRequests": Meaning.UNKNOWN,
    "SlowDown": Meaning.UNKNOWN,
    "TemporaryRedirect": Meaning.UNKNOWN,  # a new bucket that is not known everywhere yet
    "NotImplemented": Meaning.UNFIT,  # 501: a server that does not know If-None-Match
}
DELETE_MEANINGS = {"AccessDenied": Meaning.UNFIT}  # of one key among many, which has no status of its own
STATUS_MEANINGS: dict[int, Meaning] = {
    404: Meaning.ABSENT,
    408: Meaning.UNKNOWN,
    409: Meaning.UNKNOWN,
    412: Meaning.EXISTS,
    416: Meaning.BEYOND,
    429: Meaning.UNKNOWN,
}

_WRONG_REGION = "set AWS_DEFAULT_REGION to the region of the bucket"
_WRONG_KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role right"
ADVICE: dict[str, str] = {  # by error code, or by boto3's name of the error: what an operator can do
    "NoSuchBucket": "make the bucket, or correct its name",
    "AccessDenied": "the credentials need s3:PutObject, GetObject, ListBucket and DeleteObject here",
    "InvalidAccessKeyId": _WRONG_KEYS,
    "SignatureDoesNotMatch": _WRONG_KEYS,
    "InvalidToken": _WRONG_KEYS,
    "NoCredentialsError": _WRONG_KEYS,
    "PartialCredentialsError": _WRONG_KEYS,
    "NoRegionError": _WRONG_REGION,
    "PermanentRedirect": _WRONG_REGION,
    "AuthorizationHeaderMalformed": _WRONG_REGION,
    "IllegalLocationConstraintException": _WRONG_REGION,
    "NotImplemented": "this server cannot hold a journal: it needs If-None-Match",
}


def open_store(settings: Settings) -> ObjectStore:
    """The store that `settings.data` names: a directory, or s3://BUCKET/PREFIX."""
    if not settings.data:
        raise InvalidRequest("name a directory, or s3://BUCKET/PREFIX", "data")
    if not settings.is_s3:
        if "://" in settings.data:
            raise InvalidRequest(f"{settings.data!r} is neither a directory nor s3://BUCKET/PREFIX", "data")
        return DirectoryObjectStore(settings.data)
    bucket, prefix = parse_s3_url(settings.data)
    return S3ObjectStore(bucket, prefix, settings.s3_endpoint_url, settings.s3_checksums)


def open_store_quickly(settings: Settings) -> DirectoryObjectStore | S3ObjectStore:
    """The same for somebody who asks once, and would rather hear that it does not answer than wait."""
    if not settings.is_s3:
        return DirectoryObjectStore(settings.data)
    bucket, prefix = parse_s3_url(settings.data)
    return S3ObjectStore(bucket, prefix, settings.s3_endpoint_url, settings.s3_checksums, IMPATIENT)


def parse_s3_url(url: str) -> tuple[str, str]:
    """Bucket and prefix of s3://BUCKET/PREFIX. The prefix may be empty and has no slash at its ends."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    prefix = prefix.removesuffix("/")
    if len(bucket) not in BUCKET_LENGTHS or not set(bucket) <= BUCKET_CHARACTERS:
        raise InvalidRequest(f"{bucket!r} in {url!r} is not the name of a bucket", "data")
    if prefix:
        try:
            check_key(prefix)
        except InvalidRequest as error:
            raise InvalidRequest(f"the prefix in {url!r}: {error.detail}", "data") from error
    return bucket, prefix


class Patience(NamedTuple):
    """With one request: how often it is made, and how long each time."""

    attempts: int
    connect_seconds: float
    read_seconds: float


IMPATIENT = Patience(1, 1.0, 1.5)


class S3ObjectStore:
    """Objects under `prefix` in one bucket. Credentials and region come from boto3's usual places."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        endpoint_url: str | None = None,
        checksums: str = "when_supported",
        patience: Patience | None = None,
    ) -> None:
        patience = patience or Patience(READ_ATTEMPTS, CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS)
        self.put_failure = ""
        self.requests = new_request_counts()
        self._counting = threading.Lock()
        self._bucket = bucket
        self._folder = f"{prefix}/" if prefix else ""
        self._deletes_one_by_one = False
        self.dated: StoreDate | None = None
        self._date = ""
        make_client = functools.partial(_make_client, _make_session(), endpoint_url, checksums)
        self._put_client = make_client(patience._replace(attempts=1))
        self._read_client = make_client(patience)
        for client in (self._put_client, self._read_client):
            for operation, kind in OPERATIONS.items():
                # Called for each attempt, so that the figures are what S3 bills.
                count = functools.partial(self._count, kind)
                client.meta.events.register(f"before-send.s3.{operation}", count)
        self._put_client.meta.events.register("after-call.s3", self._note_date)
        self._put_threads = ThreadPoolExecutor(PUT_THREADS, thread_name_prefix="s3-put")
        self._read_threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="s3-read")

    def close(self) -> None:
        """End the threads, after what they are doing. The store is of no use afterwards."""
        for threads in (self._put_threads, self._read_threads):
            threads.shutdown(wait=True)
        for client in (self._put_client, self._read_client):
            client.close()

    async def put_new(self, key: str, data: bytes) -> PutOutcome:
        check_key(key)
        outcome = await _in_thread(self._put_threads, lambda: self._put_new(key, data))
        if self._date:
            self.dated = StoreDate(self._date, asyncio.get_running_loop().time())
        return outcome

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes | None:
        check_key(key)
        check_range(offset, length)
        return await _in_thread(self._read_threads, lambda: self._get(key, offset, length))

    async def list(self, prefix: str) -> Keys:
        check_prefix(prefix)
        return await _in_thread(self._read_threads, lambda: self._list(prefix))

    async def delete(self, key: str) -> None:
        check_key(key)
        await _in_thread(self._read_threads, lambda: self._delete(key))

    async def delete_many(self, keys: Keys) -> None:
        for key in keys:
            check_key(key)
        for start in range(0, len(keys), DELETED_AT_ONCE_MAX):
            some = keys[start : start + DELETED_AT_ONCE_MAX]
            await _in_thread(self._read_threads, functools.partial(self._delete_many, some))

    async def probe(self) -> Warnings:
        warnings = await _in_thread(self._read_threads, self._check_bucket)
        await prove_exclusive_create(self)
        return warnings

    def _note_date(self, parsed: dict[str, Any], **_: Any) -> None:
        self._date = parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")

    # --- in a thread ----------------------------------------------------------------------------

    def _put_new(self, key: str, data: bytes) -> PutOutcome:
        try:
            self._put_client.put_object(
                Bucket=self._bucket, Key=self._folder + key, Body=data, IfNoneMatch="*"
            )
        except Exception as error:
            meaning = meaning_of(error)
            if meaning is Meaning.EXISTS:
                self.put_failure = ""
                return PutOutcome.EXISTS
            if meaning is Meaning.UNKNOWN:
                self.put_failure = f"{type(error).__name__}: {error}"
                return PutOutcome.UNKNOWN
            raise _unfit("put", key, error) from error
        self.put_failure = ""
        return PutOutcome.CREATED

    def _get(self, key: str, offset: int, length: int | None) -> bytes | None:
        arguments = {"Bucket": self._bucket, "Key": self._folder + key}
        if offset or length is not None:
            # No bytes cannot be asked for; one is, and dropped, to learn whether the key exists.
            last = "" if length is None else str(offset + max(length, 1) - 1)
            arguments["Range"] = f"bytes={offset}-{last}"
        try:
            answer = self._read_client.get_object(**arguments)
            data: bytes = answer["Body"].read()
        except Exception as error:
            meaning = meaning_of(error)
            if meaning is Meaning.ABSENT:
                return None
            if meaning is Meaning.BEYOND:
                return b""
            raise _read_failure("get", key, meaning, error) from error
        return data if length is None else data[:length]

    def _list(self, prefix: str) -> Keys:
        # Sorted here: directory buckets list in an order of their own.
        try:
            return sorted(self._listed(self._folder + prefix))
        except Exception as error:
            raise _read_failure("list", prefix, meaning_of(error), error) from error

    def _listed(self, prefix: str) -> Iterator[str]:
        arguments: dict[str, Any] = {"Bucket": self._bucket, "Prefix": prefix}
        while True:
            page = self._read_client.list_objects_v2(**arguments)
            for entry in page.get("Contents", []):
                yield entry["Key"].removeprefix(self._folder)
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def _delete(self, key: str) -> None:
        try:
            self._read_client.delete_object(Bucket=self._bucket, Key=self._folder + key)
        except Exception as error:
            meaning = meaning_of(error)
            if meaning is not Meaning.ABSENT:
                raise _read_failure("delete", key, meaning, error) from error

    def _delete_many(self, keys: Keys) -> None:
        if not self._deletes_one_by_one:
            objects = [{"Key": self._folder + key} for key in keys]
            chosen = {"Objects": objects, "Quiet": True}  # quiet: it answers with the failures alone
            what = f"{keys[0]} and {len(keys) - 1} more"
            try:
                answer = self._read_client.delete_objects(Bucket=self._bucket, Delete=chosen)
            except Exception as error:
                if _code_and_status(error)[0] not in KNOWS_NO_DELETE_OBJECTS:
                    raise _read_failure("delete", what, meaning_of(error), error) from error
                self._deletes_one_by_one = True
            else:
                _require_deleted(answer.get("Errors", []))
                return
        for key in keys:
            self._delete(key)

    def _count(self, kind: str, **_: Any) -> None:
        with self._counting:
            self.requests[kind] += 1

    # --- what the operator may have set on the bucket -------------------------------------------

    def _check_bucket(self) -> Warnings:
        warnings: Warnings = []
        lifecycle = self._ask_bucket("get_bucket_lifecycle_configuration", "lifecycle rules", warnings)
        for rule in lifecycle.get("Rules", []):
            name = rule.get("ID", "without a name")
            if not may_touch(rule, self._folder):
                continue
            if deletes_objects(rule):
                raise StoreUnfit(
                    f"the lifecycle rule {name!r} of bucket {self._bucket!r} deletes objects under"
                    f" {self._folder!r} by age, and with them the journal: take the prefix out of the rule"
                )
            if rule.get("Transitions"):
                warnings.append(
                    f"the lifecycle rule {name!r} moves objects to another storage class; an archive class"
                    " makes the journal unreadable"
                )
        versioning = self._ask_bucket("get_bucket_versioning", "versioning", warnings)
        if versioning.get("Status") == "Enabled":
            warnings.append(
                f"bucket {self._bucket!r} keeps old versions: deleted objects go on costing storage; give"
                " it a lifecycle rule with NoncurrentVersionExpiration"
            )
        return warnings

    def _ask_bucket(self, operation: str, what: str, warnings: Warnings) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._read_client, operation)(Bucket=self._bucket)
            return answer
        except Exception as error:
            code = _code_and_status(error)[0]
            if code == "NoSuchLifecycleConfiguration":
                return {}
            if code in ("AccessDenied", "AllAccessDisabled", "NotImplemented", "MethodNotAllowed"):
                warnings.append(f"the {what} of bucket {self._bucket!r} could not be checked: {code}")
                return {}
            raise _read_failure(operation, self._bucket, meaning_of(error), error) from error


def deletes_objects(rule: dict[str, Any]) -> bool:
    expiration = rule.get("Expiration", {})
    return rule.get("Status") == "Enabled" and ("Days" in expiration or "Date" in expiration)


def may_touch(rule: dict[str, Any], folder: str) -> bool:
    """Can this lifecycle rule match an object that the service needs under `folder`?"""
    chosen = rule.get("Filter", {})
    both = chosen.get("And", {})
    if chosen.get("Tag") or both.get("Tags"):
        return False  # our objects carry no tags
    prefix = chosen.get("Prefix") or both.get("Prefix") or rule.get("Prefix") or ""
    if any(prefix.startswith(folder + part) for part in EXPENDABLE):
        return False
    return bool(folder.startswith(prefix) or prefix.startswith(folder))


def meaning_of(error: Exception) -> Meaning:
    """What an error of boto3 says about the request. Raises the error itself if it is a defect of ours."""
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        code, status = _code_and_status(error)
        fallback = Meaning.UNKNOWN if status >= 500 or status == 0 else Meaning.UNFIT
        return MEANINGS.get(code) or STATUS_MEANINGS.get(status, fallback)
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError, boto.NoRegionError)):
        return Meaning.UNFIT
    if isinstance(error, boto.ParamValidationError):
        raise error
    if isinstance(error, (boto.BotoCoreError, boto.HTTPClientError, OSError)):
        return Meaning.UNKNOWN  # timeouts, lost connections, names that do not resolve, half answers
    raise error


def _code_and_status(error: Exception) -> tuple[str, int]:
    response: dict[str, Any] = getattr(error, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return str(response.get("Error", {}).get("Code", "")), int(status)


def _require_deleted(failures: list[dict[str, Any]]) -> None:
    """DeleteObjects is answered 200 whatever became of each key. Raises what the worst of them means."""
    for failure in failures:
        code, key = str(failure.get("Code", "")), str(failure.get("Key", ""))
        meaning = DELETE_MEANINGS.get(code, MEANINGS.get(code, Meaning.UNKNOWN))
        if meaning is not Meaning.ABSENT:
            raise _read_failure("delete", key, meaning, Exception(f"{code}: {failure.get('Message', '')}"))


def _read_failure(what: str, key: str, meaning: Meaning, error: Exception) -> StoreError | StoreUnfit:
    if meaning is Meaning.UNKNOWN:
        return StoreError(f"{what} {key}: {error}")
    return _unfit(what, key, error)


def _unfit(what: str, key: str, error: Exception) -> StoreUnfit:
    advice = ADVICE.get(_code_and_status(error)[0]) or ADVICE.get(type(error).__name__)
    advice = f"; {advice}" if advice else ""
    return StoreUnfit(
        f"{what} {key}: the store says no, and trying again will not change it: {error}{advice}"
    )


async def _in_thread(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, work)


def _make_session() -> Any:
    import boto3  # not at the top: who keeps the journal in a directory does not pay for it
    from botocore import exceptions as boto

    try:
        return boto3.session.Session()
    except boto.BotoCoreError as error:  # a profile that is not there, a file that is none
        raise StoreUnfit(f"AWS's settings of this user cannot be used: {error}") from error


def _make_client(session: Any, endpoint_url: str | None, checksums: str, patience: Patience) -> Any:
    from botocore import exceptions as boto
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": patience.attempts},
        connect_timeout=patience.connect_seconds,
        read_timeout=patience.read_seconds,
        max_pool_connections=READ_THREADS,
        tcp_keepalive=True,
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
        s3={"addressing_style": "path"} if endpoint_url else {},
    )
    region = session.region_name or ("us-east-1" if endpoint_url else None)
    try:
        return session.client("s3", endpoint_url=endpoint_url, region_name=region, config=config)
    except boto.BotoCoreError as error:  # a region that has no such form, keys of which one is missing
        raise StoreUnfit(f"AWS's settings of this user cannot be used: {error}") from error
    except ValueError as error:  # boto3's word for an address that is none
        raise InvalidRequest(str(error), "s3_endpoint_url") from error
