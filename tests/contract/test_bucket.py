"""The real bucket and that of the delivery model refuse to create a key twice; the real one reports each outage."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import pytest

from bronze.errors import Halted, Misconfigured, Unavailable
from bronze.objects.reader import read_contents
from bronze.servers.bucket import STORED_BYTES, Bucket, ErasableBucket, NoSuchKey
from bronze.servers.s3 import PROBE_AGE_S_MAX, PROBES, S3Bucket
from bronze.settings import Settings
from local.programs import LOOPBACK, free_ports
from local.servers import S3Account
from tests.delivery.servers import ModelBucket

TEXT = "text/plain"


async def list_keys(keys: AsyncIterator[str]) -> list[str]:
    return [key async for key in keys]


# --- the calls that the roles need, on the real bucket and on that of the model


@pytest.fixture(params=["SeaweedFS", "model"])
def any_bucket(request: pytest.FixtureRequest) -> ErasableBucket:
    if request.param == "model":
        return ModelBucket({})
    real: S3Bucket = request.getfixturevalue("bucket")
    return real


async def test_of_racing_writers_of_a_key_exactly_one_creates_it(any_bucket: Bucket, prefix: str) -> None:
    for race in range(4):
        key = f"{prefix}/{race}"
        won = await asyncio.gather(*(any_bucket.create(key, str(racer).encode(), {}, TEXT) for racer in range(4)))
        assert won.count(True) == 1
        assert await any_bucket.read(key, 0, 1) == str(won.index(True)).encode()


async def test_an_existing_key_is_not_written(any_bucket: Bucket, prefix: str) -> None:
    key = f"{prefix}/key"
    assert await any_bucket.create(key, b"first", {"bronze-first": "1"}, TEXT)
    assert not await any_bucket.create(key, b"second", {"bronze-first": "2"}, TEXT)
    head = await any_bucket.head(key)
    assert head is not None
    assert (head.size, head.metadata["bronze-first"], len(head.metadata["sha256"])) == (5, "1", 64)
    assert await any_bucket.read(key, 0, 5) == b"first"


async def test_a_missing_object_is_none_and_no_error(any_bucket: Bucket, prefix: str) -> None:
    assert await any_bucket.head(f"{prefix}/nothing") is None
    assert await read_contents(any_bucket, f"{prefix}/nothing.parquet") is None


async def test_a_range_is_read_and_no_more(any_bucket: Bucket, prefix: str) -> None:
    await any_bucket.create(f"{prefix}/key", b"0123456789", {}, TEXT)
    assert await any_bucket.read(f"{prefix}/key", 2, 5) == b"234"
    assert await any_bucket.read(f"{prefix}/key", 9, 10) == b"9"


@pytest.mark.parametrize("body", [b"", b"short", b"no Parquet, but long enough for a tail"])
async def test_an_object_that_bronze_did_not_write_halts(any_bucket: Bucket, prefix: str, body: bytes) -> None:
    """It has a key of Bronze, so to continue would be a guess."""
    await any_bucket.create(f"{prefix}/key", body, {}, TEXT)
    with pytest.raises(Halted):
        await read_contents(any_bucket, f"{prefix}/key")


async def test_keys_are_listed_in_order_after_a_key(any_bucket: Bucket, prefix: str) -> None:
    """The folder of an hour, with its slash, sorts before the keys of the hour and after those of earlier hours."""
    keys = [f"{prefix}/hour={hour:02}/{name}" for hour in (9, 10, 11) for name in "ab"]
    for key in reversed(keys):
        await any_bucket.create(key, b"", {}, TEXT)
    assert await list_keys(any_bucket.keys(f"{prefix}/")) == keys
    assert await list_keys(any_bucket.keys(f"{prefix}/", f"{prefix}/hour=10/")) == keys[2:]
    assert await list_keys(any_bucket.keys(f"{prefix}/", keys[2])) == keys[3:]
    assert await list_keys(any_bucket.keys(f"{prefix}/hour=10/")) == keys[2:4]


async def test_reading_a_missing_key_is_denied(any_bucket: Bucket, prefix: str) -> None:
    """The reader has seen the object before: to wait does not bring it back."""
    with pytest.raises(NoSuchKey) as refused:
        await any_bucket.read(f"{prefix}/nothing", 0, 1)
    assert refused.value.code == "denied"


async def test_a_range_ends_where_the_object_ends(any_bucket: Bucket, prefix: str) -> None:
    await any_bucket.create(f"{prefix}/key", b"0123456789", {}, TEXT)
    await any_bucket.create(f"{prefix}/empty", b"", {}, TEXT)
    assert await any_bucket.read(f"{prefix}/key", 8, 20) == b"89"
    assert await any_bucket.read(f"{prefix}/empty", 0, 0) == b""


async def test_keys_of_other_prefixes_are_not_listed(any_bucket: Bucket, prefix: str) -> None:
    """A prefix is the beginning of a key, not a folder; the order is that of the keys' bytes."""
    for name in ("b", "a/1", "a0", "A", "a/\N{SNOWMAN}"):
        await any_bucket.create(f"{prefix}/{name}", b"", {}, TEXT)
    assert await list_keys(any_bucket.keys(f"{prefix}/a")) == [
        f"{prefix}/{name}" for name in ("a/1", "a/\N{SNOWMAN}", "a0")
    ]
    assert await list_keys(any_bucket.keys(f"{prefix}/a/")) == [f"{prefix}/{name}" for name in ("a/1", "a/\N{SNOWMAN}")]
    assert await list_keys(any_bucket.keys(f"{prefix}/c")) == []


async def test_an_object_is_replaced_only_if_it_is_still_the_one_that_was_read(
    any_bucket: ErasableBucket, prefix: str
) -> None:
    """Of racing writers that read the same object exactly one replaces it, and none brings back a deleted one."""
    key = f"{prefix}/key"
    await any_bucket.create(key, b"first", {}, TEXT)
    head = await any_bucket.head(key)
    assert head is not None
    won = await asyncio.gather(
        *(any_bucket.replace(key, b"%d" % racer, {STORED_BYTES: "5"}, TEXT, head.etag) for racer in range(4))
    )
    assert won.count(True) == 1
    new = await any_bucket.head(key)
    assert new is not None
    assert (new.size, new.stored_size, new.etag == head.etag) == (1, 5, False)
    assert await any_bucket.read(key, 0, 1) == str(won.index(True)).encode()
    assert await any_bucket.old_versions(key) == []
    await any_bucket.delete(key)
    assert not await any_bucket.replace(key, b"again", {}, TEXT, new.etag)
    assert await any_bucket.head(key) is None


async def test_an_existing_bucket_passes_the_check(any_bucket: Bucket) -> None:
    await any_bucket.check()


# --- only the real bucket


async def test_old_versions_are_listed_and_deleted(s3_account: S3Account, s3_env: dict[str, str]) -> None:
    """Those of this key, and not of longer ones; the current one stays."""
    bucket = S3Bucket(Settings(bucket="versions"))
    try:
        bucket._s3.create_bucket(Bucket="versions")
        bucket._s3.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
        for key in ("key", "key.longer", "key"):
            bucket._s3.put_object(Bucket="versions", Key=key, Body=b"old")
            for number in range(2):
                head = await bucket.head(key)
                assert head is not None
                assert await bucket.replace(key, b"%d" % number, {}, TEXT, head.etag)
        old = await bucket.old_versions("key")
        assert len(old) == 5
        for version in old:
            await bucket.delete_version("key", version)
        assert await bucket.old_versions("key") == []
        assert len(await bucket.old_versions("key.longer")) == 2
        assert await bucket.read("key", 0, 1) == b"1"
    finally:
        bucket.close()


async def test_a_listing_continues_after_a_page(bucket: S3Bucket, s3_account: S3Account, prefix: str) -> None:
    """A page has 1,000 keys; here it has 2."""
    keys = [f"{prefix}/{number}" for number in range(7)]
    for key in keys:
        await bucket.create(key, b"", {}, TEXT)
    paged = S3Bucket(Settings(bucket=s3_account.bucket), page_keys_max=2)
    requested: list[str] = []

    def record(params: Mapping[str, str], **_: object) -> None:
        requested.append(params["StartAfter"])

    paged._s3.meta.events.register("before-parameter-build.s3.ListObjectsV2", record)
    try:
        assert await list_keys(paged.keys(f"{prefix}/")) == keys
    finally:
        paged.close()
    assert requested == ["", keys[1], keys[3], keys[5]]


# --- the kinds of outages


async def test_wrong_credentials_are_denied(
    s3_account: S3Account, s3_env: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    await assert_refuses("denied", S3Bucket(Settings(bucket=s3_account.bucket)))


async def test_a_missing_bucket_is_denied(s3_env: Mapping[str, str]) -> None:
    """An operator has to create it or to correct its name: to wait does not help."""
    bucket = S3Bucket(Settings(bucket="missing-bucket"))
    try:
        with pytest.raises(Unavailable) as refused:
            await bucket.check()
        assert refused.value.code == "denied"
    finally:
        bucket.close()


async def test_a_stopped_server_is_unavailable(s3_env: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{LOOPBACK}:{free_ports()}")
    await assert_refuses("unavailable", S3Bucket(Settings()))


async def test_a_server_that_does_not_answer_is_a_timeout(
    s3_env: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, LOOPBACK, 0)
    async with server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{LOOPBACK}:{server.sockets[0].getsockname()[1]}")
        await assert_refuses("timeout", S3Bucket(Settings(), read_timeout_s=0.2))


async def assert_refuses(kind: str, bucket: S3Bucket) -> None:
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: bucket.create("key", b"body", {}, TEXT),
        lambda: bucket.head("key"),
        lambda: bucket.read("key", 0, 1),
        lambda: list_keys(bucket.keys("prefix/")),
        bucket.check,
    ]
    try:
        for call in calls:
            with pytest.raises(Unavailable) as refused:
                await call()
            assert refused.value.code == kind
    finally:
        bucket.close()


async def test_missing_credentials_are_misconfigured(
    s3_env: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    bucket = S3Bucket(Settings())
    try:
        with pytest.raises(Misconfigured, match="AWS_ACCESS_KEY_ID"):
            await bucket.check()
    finally:
        bucket.close()


# --- rule 10


async def test_the_create_only_test_passes_and_leaves_no_keys(bucket: S3Bucket) -> None:
    await bucket.check_create_only()
    assert await list_keys(bucket.keys(".bronze/")) == []


async def test_old_probe_keys_of_a_killed_consumer_are_deleted(bucket: S3Bucket, s3_account: S3Account) -> None:
    """A recent one may belong to the running test of another consumer, which its deletion would disturb."""
    probes = [f"{PROBES}left-{number}" for number in range(2)]
    for key in probes:
        await bucket.create(key, b"", {}, TEXT)
    for age_s, left in ((PROBE_AGE_S_MAX - 60, probes), (PROBE_AGE_S_MAX + 60, [])):
        starting = S3Bucket(Settings(bucket=s3_account.bucket), now_s=lambda: time.time() + age_s)  # noqa: B023
        try:
            await starting.check_create_only()
        finally:
            starting.close()
        assert await list_keys(bucket.keys(PROBES)) == left


class Overwriting(S3Bucket):
    """A bucket that ignores `If-None-Match`."""

    async def create(self, key: str, body: bytes, metadata: Mapping[str, str], content_type: str) -> bool:
        self._s3.put_object(Bucket=self.name, Key=key, Body=body)
        return True


async def test_a_bucket_that_ignores_create_only_is_refused(s3_account: S3Account, s3_env: Mapping[str, str]) -> None:
    bucket = Overwriting(Settings(bucket=s3_account.bucket))
    try:
        with pytest.raises(Misconfigured, match="BRONZE_CREATE_ONLY_MISSING"):
            await bucket.check_create_only()
        assert await list_keys(bucket.keys(".bronze/")) == []
    finally:
        bucket.close()


class Replacing(S3Bucket):
    """A bucket that ignores `If-Match`."""

    async def replace(self, key: str, body: bytes, metadata: Mapping[str, str], content_type: str, etag: str) -> bool:
        self._s3.put_object(Bucket=self.name, Key=key, Body=body)
        return True


async def test_a_bucket_that_ignores_the_condition_of_a_replacement_is_refused(
    bucket: S3Bucket, s3_account: S3Account
) -> None:
    """The probe leaves no key, whatever the result."""
    await bucket.check_replace()
    ignoring = Replacing(Settings(bucket=s3_account.bucket))
    try:
        with pytest.raises(Misconfigured, match="If-Match"):
            await ignoring.check_replace()
    finally:
        ignoring.close()
    assert await list_keys(bucket.keys(PROBES)) == []


async def test_a_bucket_without_create_only_can_be_accepted_for_one_consumer(
    s3_account: S3Account, s3_env: Mapping[str, str], prefix: str
) -> None:
    """Then a request before the write replaces create-only."""
    bucket = S3Bucket(Settings(bucket=s3_account.bucket, create_only_missing=True))
    try:
        await bucket.check_create_only()
        assert await bucket.create(f"{prefix}/key", b"first", {}, TEXT)
        assert not await bucket.create(f"{prefix}/key", b"second", {}, TEXT)
        assert await bucket.read(f"{prefix}/key", 0, 5) == b"first"
    finally:
        bucket.close()
