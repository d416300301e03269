"""Objects of a bucket as files of the publisher, on the real server."""

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bronze.errors import Misconfigured
from bronze.publisher import object_files
from bronze.publisher.files import key_prefix, open_file, total_size
from bronze.publisher.inferring import infer
from bronze.publisher.object_files import find_objects, is_folder
from local.servers import S3Account

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CSV = b"thing_id,size\na,1\nb,2\n"


@pytest.fixture
def s3(s3_env: dict[str, str]) -> Iterator["S3Client"]:
    object_files._client.cache_clear()
    yield boto3.client("s3")
    object_files._client.cache_clear()


@pytest.fixture
def folder(s3: "S3Client", s3_account: S3Account, prefix: str) -> str:
    """The address of a folder with objects of several kinds."""
    table = io.BytesIO()
    pq.write_table(pa.table({"thing_id": ["c"], "size": [3]}), table)
    objects = {
        "b.csv": CSV,
        "a.parquet": table.getvalue(),
        "unknown.bin": b"?",
        ".hidden.csv": CSV,
        "2013/01/late.csv": CSV,
        "2013/.part/x.csv": CSV,
    }
    for name, body in objects.items():
        s3.put_object(Bucket=s3_account.bucket, Key=f"{prefix}/{name}", Body=body)
    return f"s3://{s3_account.bucket}/{prefix}/"


def names(folder: str, pattern: str) -> list[str]:
    return [file.removeprefix(folder) for file in find_objects(folder, pattern, None)]


def test_a_folder_has_the_objects_that_a_directory_would_have(folder: str) -> None:
    assert names(folder, "*") == ["a.parquet", "b.csv"]
    assert names(folder, "*.csv") == ["b.csv"]
    assert names(folder, "**/*.csv") == ["2013/01/late.csv", "b.csv"]
    assert names(folder, "2013/*/*") == ["2013/01/late.csv"]
    assert is_folder(folder)
    assert is_folder("s3://bucket")
    assert not is_folder(folder + "b.csv")


def test_the_sizes_of_found_objects_take_no_further_request(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_objects(folder, "*.csv", None)
    with monkeypatch.context() as without_server:
        without_server.delattr(object_files, "_client")
        assert total_size(found) == len(CSV)


def test_a_prefix_of_names_is_no_folder(folder: str) -> None:
    assert find_objects(folder.removesuffix("/")[:-1] + "/", "*", None) == []


def test_an_object_is_read_as_a_file(folder: str) -> None:
    with open_file(folder + "b.csv") as file:
        assert file.stream.read() == CSV
        file.check()
        key = key_prefix(file, "", None)
    with open_file(folder + "b.csv") as file:
        assert key_prefix(file, "", None) == key
    assert total_size([folder + "b.csv", folder + "b.csv"]) == 2 * len(CSV)


def test_a_declaration_is_inferred_from_objects_of_every_kind(folder: str) -> None:
    text = infer("things", [folder + "b.csv", folder + "a.parquet"])
    assert '{ name = "size", type = "int64"' in text


def test_an_object_that_does_not_exist_is_named(folder: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv"), open_file(folder + "none.csv"):
        pass
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        total_size([folder + "none.csv"])


def test_a_bucket_that_may_not_be_read_is_named(
    folder: str, s3_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    object_files._client.cache_clear()
    with pytest.raises(PermissionError, match=r"b\.csv"), open_file(folder + "b.csv"):
        pass


def test_no_credentials_are_a_wrong_setting(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    object_files._client.cache_clear()
    with pytest.raises(Misconfigured, match="AWS_PROFILE"), open_file(folder + "b.csv"):
        pass
