"""A queue and a bucket as the recorded version left them when it was stopped."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from local.programs import start
from local.servers import S3Account
from tests.compat import state
from tests.compat.record import WRITTEN
from tests.compat.scenario import BUCKET, SETTINGS
from tests.compat.site import Site
from tests.compat.state import Call

Written = dict[str, Any]


def read(folder: Path) -> Written:
    """The files of a recording, by name."""
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


@pytest.fixture(scope="session")
def written() -> Written:
    return read(WRITTEN)


@pytest.fixture
def site(tmp_path: Path, s3_account: S3Account, written: Written) -> Iterator[Site]:
    """The running servers with the recorded data; no role runs yet."""
    soon = {"BRONZE_DEADLINE_S": "1", "BRONZE_PURGE_GRACE_S": "2"}
    with tarfile.open(WRITTEN / "disks.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    with Site(tmp_path, replace(s3_account, bucket=BUCKET), {**SETTINGS, **soon}) as site:
        state.write_bucket(site.s3, BUCKET, written["bucket"])
        with start(site.queue(), tmp_path / "nats.log"):
            renew(site, written)
            yield site


def renew(site: Site, written: Written) -> None:
    """Write each identity once more, as it was. Their time to live goes on in a queue that is kept: those that are
    still there are taken away first, so that the test is the same today and in a year.
    """
    catalog = next(one for one in written["queue"] if "identity.*" in one["config"]["subjects"])
    old = [one for one in catalog["messages"] if one["subject"].startswith("identity.")]

    async def take_away(call: Call) -> None:
        for one in old:
            await call(f"STREAM.MSG.DELETE.{catalog['config']['name']}", seq=one["sequence"])

    state.on_queue(site.nats_port, take_away)
    for subject, message in {one["subject"]: one for one in old}.items():
        ttl = {name: value for name, value in message["headers"] if name == "Nats-TTL"}
        state.publish(site.nats_port, subject, state.as_bytes(message["payload"]), ttl)
