"""Readers of the bucket: the snippets of README.md and docs/reading.md, each partition key, and `bronze read`."""

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from io import BytesIO
from operator import and_
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import S3FileSystem

from local import servers
from local.builds import REPOSITORY
from local.machine import limit_s
from tests.system.blackbox import System, ndjson, until, vehicles

README = REPOSITORY / "README.md"
MARKED = re.compile(r"<!-- test: (\w+) -->\s*```python\n(.*?)```", re.DOTALL)
SNIPPETS = ("pyarrow", "duckdb")
RECORDS = 5
LONG_AGO = "2013-01-01"
#: The error for a damaged file.
UNREADABLE = "Deserializing page header failed"


def spoilt(parquet: bytes) -> bytes:
    """A Parquet file with a readable footer and unreadable pages: reading its rows fails."""
    footer = int.from_bytes(parquet[-8:-4], "little") + 8  # its length is before the magic bytes at the end
    return parquet[:4] + b"\xff" * (len(parquet) - footer - 4) + parquet[-footer:]


@dataclass(frozen=True)
class Lake:
    """A bucket with a copy of one object of the system, and damaged objects in other partitions."""

    system: System
    bucket: str
    keys: Mapping[str, str]

    @classmethod
    def of(cls, system: System) -> "Lake":
        accepted = system.post("vehicles", ndjson(vehicles("lake", RECORDS)))
        (link,) = system.stored(accepted.json()["submission_id"])["objects"]
        lake = cls(system, f"lake-{uuid4().hex[:12]}", dict(re.findall(r"(\w+)=([^/]+)/", link["file_path"])))
        system.s3.create_bucket(Bucket=lake.bucket)
        lake.put(system.body(link["file_path"]))
        return lake

    def put(self, body: bytes, **elsewhere: str) -> None:
        path = "/".join(f"{name}={value}" for name, value in {**self.keys, **elsewhere}.items())
        self.system.s3.put_object(Bucket=self.bucket, Key=f"{self.system.prefix}/{path}/1.parquet", Body=body)

    def spoil(self, **elsewhere: str) -> None:
        path = "/".join(f"{name}={value}" for name, value in self.keys.items())
        whole = self.system.s3.get_object(Bucket=self.bucket, Key=f"{self.system.prefix}/{path}/1.parquet")
        self.put(spoilt(whole["Body"].read()), **elsewhere)

    def run(self, snippet: str) -> "subprocess.CompletedProcess[str]":
        """Runs a snippet in its own process, with only the addresses and credentials of the environment."""
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", snippet],
            env={**self.system.client_env, "BRONZE_BUCKET": self.bucket},
            capture_output=True,
            text=True,
            timeout=limit_s(60),
            check=False,
        )


# --- the README's snippets


@pytest.fixture(scope="module")
def lake(system: System) -> Lake:
    """A lake with a damaged file in an old partition."""
    lake = Lake.of(system)
    lake.spoil(date=LONG_AGO)
    return lake


def snippet(name: str) -> str:
    """The README's Python block after the comment `<!-- test: name -->`."""
    found = dict(MARKED.findall(README.read_text(encoding="utf-8")))
    assert name in found, f"README.md has no block of python after <!-- test: {name} -->"
    return str(found[name])


@pytest.mark.parametrize("name", SNIPPETS)
def test_the_readme_reads_the_bucket_and_prunes(name: str, lake: Lake) -> None:
    """The snippet runs as printed, returns the rows of the bucket, and opens only the days that it asks for."""
    outcome = lake.run(snippet(name))
    assert outcome.returncode == 0, outcome.stderr
    assert lake.keys["date"] in outcome.stdout
    assert f"lake-{RECORDS - 1}" in outcome.stdout
    assert LONG_AGO not in outcome.stdout


@pytest.mark.parametrize("name", SNIPPETS)
def test_without_pruning_the_old_partition_is_opened(name: str, lake: Lake) -> None:
    """The same snippet fails at the damaged file if it asks for all days: this shows that the test above can fail."""
    everything, changes = re.subn(r"(?m)^since = .*$", f'since = "{LONG_AGO}"', snippet(name))
    assert changes == 1, "the snippet says `since = ...` once"
    outcome = lake.run(everything)
    assert outcome.returncode != 0
    assert UNREADABLE in outcome.stderr


# --- the recipes of docs/reading.md, with objects of different columns

READING = REPOSITORY / "docs" / "reading.md"
#: A field of the sample's vehicles that is later than the others, in the objects of the test.
LATER = "seats"


def mixed_lake(system: System, *, old_first: bool) -> Lake:
    """A lake with an object that lacks a column, and one that has it."""
    lake = Lake.of(system)
    path = "/".join(f"{name}={value}" for name, value in lake.keys.items())
    key = f"{system.prefix}/{path}/1.parquet"
    new = pq.read_table(BytesIO(system.s3.get_object(Bucket=lake.bucket, Key=key)["Body"].read()))
    system.s3.delete_object(Bucket=lake.bucket, Key=key)  # first: its hour may be one of those below
    for table, hour in ((new.drop_columns(LATER), 0 if old_first else 2), (new, 1)):
        file = BytesIO()
        pq.write_table(table, file)
        lake.put(file.getvalue(), hour=f"{hour:02}")
    return lake


@pytest.mark.parametrize("old_first", [True, False], ids=["old first", "new first"])
@pytest.mark.parametrize("names", [["pyarrow"], ["pyarrow", "duckdb"], ["polars"]], ids="-".join)
def test_a_recipe_survives_an_added_field(names: list[str], system: System, *, old_first: bool) -> None:
    """Every row of both objects, with null where the object lacks the field."""
    lake = mixed_lake(system, old_first=old_first)
    recipes = dict(MARKED.findall(READING.read_text(encoding="utf-8")))
    code = "\n".join(recipes[name] for name in names).replace("/bronze/source", f"/{system.prefix}/source")
    outcome = lake.run(code)
    assert outcome.returncode == 0, outcome.stderr
    expected = sorted(
        [f"('lake-{n}', {n}, 1)" for n in range(RECORDS)] + [f"('lake-{n}', None, 1)" for n in range(RECORDS)]
    )
    assert sorted(outcome.stdout.splitlines()) == sorted(expected * len(names))


def test_bronze_read_reads_the_rows_of_a_source(system: System, mark: str, tmp_path: Path) -> None:
    """By the catalog, with a condition, to a file."""
    accepted = system.post("vehicles", ndjson(vehicles(mark, RECORDS)))
    system.stored(accepted.json()["submission_id"])
    out = tmp_path / "out.parquet"
    condition = f"_submission_id = '{accepted.json()['submission_id']}' AND seats >= 2"

    def read(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [servers.executable("bronze"), "read", "vehicles", "--since", "1h", "--where", condition, *words],
            env={**system.client_env, "BRONZE_API_URL": system.url},
            capture_output=True,
            text=True,
            timeout=limit_s(60),
            check=False,
        )

    def indexed() -> list[Any]:
        done = read("--columns", "vehicle_id", "--output", str(out))
        assert done.returncode == 0, done.stderr
        return list(pq.read_table(out)["vehicle_id"].to_pylist())

    assert until("the object is in the catalog index", indexed) == [f"{mark}-{n}" for n in range(2, RECORDS)]
    assert f"{mark}-4" in read("--columns", "vehicle_id").stdout
    assert read("--columns", "wings").returncode == 2


# --- each partition key


def read_by_pyarrow(dataset: Any, keys: Mapping[str, str | int]) -> int:
    """The number of rows with these keys; all columns are read."""
    condition = reduce(and_, (ds.field(name) == value for name, value in keys.items()))
    return int(dataset.to_table(filter=condition).num_rows)


def read_by_duckdb(dataset: Any, keys: Mapping[str, str | int]) -> int:
    condition = " AND ".join(f"{name} = {value!r}" for name, value in keys.items())
    connection = duckdb.connect()
    connection.register("bronze", dataset)
    return len(connection.sql(f"SELECT * FROM bronze WHERE {condition}").fetchall())


@pytest.mark.parametrize("read", [read_by_pyarrow, read_by_duckdb])
def test_each_partition_key_prunes(read: Callable[[Any, Mapping[str, str | int]], int], system: System) -> None:
    """PyArrow and DuckDB skip files by source, date and hour. For each of these keys there is a damaged file with
    another value, and reading fails as soon as the condition on this key is left out.
    """
    lake = Lake.of(system)
    lake.spoil(source="results")
    lake.spoil(date=LONG_AGO)
    lake.spoil(hour=f"{(int(lake.keys['hour']) + 1) % 24:02}")
    account = system.stack.account
    s3 = S3FileSystem(
        access_key=account.access_key,
        secret_key=account.secret_key,
        endpoint_override=account.env["AWS_ENDPOINT_URL_S3"],
        region=account.env["AWS_DEFAULT_REGION"],
    )
    dataset = ds.dataset(f"{lake.bucket}/{system.prefix}", filesystem=s3, partitioning="hive")
    keys: dict[str, str | int] = {**lake.keys, "hour": int(lake.keys["hour"])}
    assert list(keys) == ["source", "date", "hour"]
    assert read(dataset, keys) == RECORDS
    for name in keys:
        with pytest.raises((OSError, duckdb.Error), match=UNREADABLE):
            read(dataset, {other: value for other, value in keys.items() if other != name})
