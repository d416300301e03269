"""The Bronze bucket on S3.

boto3 reads the endpoint, the region and the credentials from its own `AWS_*` settings. The client makes one attempt;
the caller retries.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import boto3
import botocore.exceptions
from botocore.config import Config

from bronze.errors import Misconfigured, Outage, Unavailable
from bronze.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
from bronze.servers.bucket import Head, NoSuchKey

T = TypeVar("T")

log = logging.getLogger(__name__)

_OUTAGES = {
    401: Outage.DENIED,
    403: Outage.DENIED,
    404: Outage.DENIED,
    409: Outage.CONFLICT,
    429: Outage.THROTTLED,
    503: Outage.THROTTLED,
}

THREADS = 8
CONNECT_TIMEOUT_S = 3
READ_TIMEOUT_S = 30
ADVICE = "Check that it runs, and that AWS_ENDPOINT_URL_S3 is its address"
#: Keys that one request lists; the bound is that of S3.
PAGE_KEYS_MAX = 1_000
RACERS = 4
RACES = 3
#: Prefix of the keys of the test at a consumer's start. A consumer that is killed during the test leaves its key.
PROBES = ".bronze/create-only/"
#: An older probe key belongs to no test that is still running, even if the clocks of the machines differ.
PROBE_AGE_S_MAX = 3600
#: Old probe keys that one start deletes, at most.
PROBES_DELETED_MAX = 100


class S3Bucket:
    """The bucket on S3."""

    def __init__(
        self,
        settings: Settings,
        *,
        now_s: Callable[[], float] = time.time,
        read_timeout_s: float = READ_TIMEOUT_S,
        page_keys_max: int = PAGE_KEYS_MAX,
    ) -> None:
        self.name = settings.bucket
        self._now_s = now_s
        self._page_keys_max = page_keys_max
        self._create_only = not settings.create_only_missing
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="bucket")
        self._s3: S3Client = boto3.Session().client(
            "s3",
            config=Config(
                retries={"total_max_attempts": 1, "mode": "standard"},
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=read_timeout_s,
                max_pool_connections=THREADS,
                request_checksum_calculation="when_required",  # some S3-compatible servers refuse the default trailer
                response_checksum_validation="when_required",
            ),
        )

    @property
    def address(self) -> str:
        return self._s3.meta.endpoint_url

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _call(self, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except botocore.exceptions.ClientError as error:
            raise _unavailable(error) from error
        except (botocore.exceptions.ConnectTimeoutError, botocore.exceptions.ReadTimeoutError) as error:
            raise Unavailable(Outage.TIMEOUT, f"the bucket does not answer: {error}. {ADVICE}") from error
        except botocore.exceptions.BotoCoreError as error:
            if isinstance(error, botocore.exceptions.NoCredentialsError):
                raise Misconfigured(
                    "no credentials for the bucket: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                ) from error
            raise Unavailable(Outage.UNAVAILABLE, f"the bucket is unavailable: {error}. {ADVICE}") from error

    async def create(self, key: str, body: bytes, metadata: Mapping[str, str], content_type: str) -> bool:
        """Write an object if its key does not exist. Returns False if the key exists; then nothing was written."""
        if not self._create_only and await self.head(key) is not None:
            return False
        condition = {"IfNoneMatch": "*"} if self._create_only else {}
        return await self._put(key, body, metadata, content_type, condition)

    async def replace(self, key: str, body: bytes, metadata: Mapping[str, str], content_type: str, etag: str) -> bool:
        """Write an object if the one under its key has this ETag. Returns False if not; then nothing was written."""
        return await self._put(key, body, metadata, content_type, {"IfMatch": etag})

    async def _put(
        self, key: str, body: bytes, metadata: Mapping[str, str], content_type: str, condition: Mapping[str, str]
    ) -> bool:
        """Returns False if the condition is not met."""
        request: dict[str, Any] = {
            "Bucket": self.name,
            "Key": key,
            "Body": body,
            "ContentType": content_type,
            "Metadata": {**metadata, "sha256": hashlib.sha256(body).hexdigest()},
            **condition,
        }

        def put() -> bool:
            try:
                self._s3.put_object(**request)
            except botocore.exceptions.ClientError as error:
                if _status(error) == 412 or ("IfMatch" in condition and _status(error) == 404):
                    return False
                raise
            return True

        return await self._call(put)

    async def delete(self, key: str) -> None:
        """Delete an object if it exists."""
        await self._call(partial(self._s3.delete_object, Bucket=self.name, Key=key))

    async def old_versions(self, key: str) -> Sequence[str]:
        """The ids of the versions of an object that are not the current one, if the bucket has versioning."""
        found: list[str] = []
        place: dict[str, str] = {}
        while True:
            # without a bound of keys: with one, SeaweedFS 4.48 begins with the last ones
            page = await self._call(
                partial(self._s3.list_object_versions, Bucket=self.name, Prefix=key, **place)  # type: ignore[arg-type]
            )
            versions = page.get("Versions", [])
            found += [item["VersionId"] for item in versions if item["Key"] == key and not item["IsLatest"]]
            # the versions of a key come before those of longer keys
            if not page["IsTruncated"] or any(item["Key"] != key for item in versions):
                return found
            place = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page["NextVersionIdMarker"]}

    async def delete_version(self, key: str, version: str) -> None:
        await self._call(partial(self._s3.delete_object, Bucket=self.name, Key=key, VersionId=version))

    async def head(self, key: str) -> Head | None:
        def head() -> Head | None:
            try:
                answer = self._s3.head_object(Bucket=self.name, Key=key)
            except botocore.exceptions.ClientError as error:
                if _status(error) == 404:
                    return None
                raise
            return Head(answer["ContentLength"], answer["Metadata"], answer["ETag"])

        return await self._call(head)

    async def read(self, key: str, start: int, end: int) -> bytes:
        """The bytes of an object from `start` up to, but not including, `end`."""

        def get() -> bytes:
            byte_range = f"bytes={start}-{end - 1}"
            try:
                return self._s3.get_object(Bucket=self.name, Key=key, Range=byte_range)["Body"].read()
            except self._s3.exceptions.NoSuchKey as error:
                raise NoSuchKey(key) from error

        return await self._call(get)

    async def keys(self, prefix: str, start_after: str = "") -> AsyncIterator[str]:
        """The keys with a prefix, in order, after the key `start_after`."""
        async for key, _ in self.sizes(prefix, start_after):
            yield key

    async def sizes(self, prefix: str, start_after: str = "") -> AsyncIterator[tuple[str, int]]:
        """As `keys`, each with the size of its object in bytes."""
        while True:
            page = await self._call(
                partial(
                    self._s3.list_objects_v2,
                    Bucket=self.name,
                    Prefix=prefix,
                    StartAfter=start_after,
                    MaxKeys=self._page_keys_max,
                )
            )
            items = page.get("Contents", [])
            for item in items:
                yield item["Key"], item["Size"]
            if not page["IsTruncated"] or not items:
                return
            start_after = items[-1]["Key"]

    async def check(self) -> None:
        """Check that the bucket exists and answers; raises `Unavailable`."""
        await self._call(partial(self._s3.head_bucket, Bucket=self.name))

    async def check_create_only(self) -> None:
        """Let several writers create the same key at once; raises `Misconfigured` if more than one succeeds."""
        if not self._create_only:
            return
        for _ in range(RACES):
            key = f"{PROBES}{uuid4().hex}"
            try:
                results = await asyncio.gather(
                    *(self.create(key, str(racer).encode(), {}, "text/plain") for racer in range(RACERS)),
                    return_exceptions=True,
                )
            finally:
                await self.delete(key)
            if results.count(True) > 1:
                raise Misconfigured(
                    f"{results.count(True)} of {RACERS} writers created the same key in bucket {self.name}: the bucket "
                    "does not support create-only PUT (If-None-Match). Without it, two consumers would overwrite each "
                    "other's objects. Use a bucket that supports it, or run exactly one consumer and set "
                    "BRONZE_CREATE_ONLY_MISSING=true"
                )
            errors = [result for result in results if isinstance(result, BaseException)]
            if True not in results and errors:
                raise errors[0]
        try:
            await self._delete_old_probes()
        except Unavailable as error:
            log.warning("old probe keys under %s in bucket %s could not be deleted: %s", PROBES, self.name, error)

    async def check_replace(self) -> None:
        """Try to replace an object that is not the one that was read; raises `Misconfigured` if the bucket does it."""
        key = f"{PROBES}{uuid4().hex}"
        await self.create(key, b"stored", {}, "text/plain")
        try:
            replaced = await self.replace(key, b"replaced", {}, "text/plain", f'"{"0" * 32}"')
        finally:
            await self.delete(key)
        if replaced:
            raise Misconfigured(
                f"the bucket {self.name} replaces an object although it is not the one that was read: it does not "
                "support conditional PUT (If-Match). Without it, two commands could undo each other's erasures. "
                "Nothing was erased"
            )

    async def _delete_old_probes(self) -> None:
        page = await self._call(
            partial(self._s3.list_objects_v2, Bucket=self.name, Prefix=PROBES, MaxKeys=PROBES_DELETED_MAX)
        )
        for item in page.get("Contents", []):
            if self._now_s() - item["LastModified"].timestamp() > PROBE_AGE_S_MAX:
                await self.delete(item["Key"])


def _status(error: botocore.exceptions.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _unavailable(error: botocore.exceptions.ClientError) -> Unavailable:
    status = _status(error)
    return Unavailable(_OUTAGES.get(status, Outage.UNAVAILABLE), f"the bucket answers {status}: {error}")
