"""`bronze retain` under load, on real processes, while the command and the consumers are killed.

BRONZE_KILL_SEED as for the kill test.
"""

import asyncio
import os
import random
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL

from bronze.objects.expiry import read_marks
from bronze.protocol.documents import CatalogEntry
from bronze.protocol.expiry import ExpiryMark
from bronze.protocol.lane import Lane
from bronze.servers.s3 import S3Bucket
from bronze.settings import Settings
from local import programs
from local.machine import limit_s
from tests.delivery.kill import checker, wiring
from tests.delivery.kill.checker import Found, check
from tests.delivery.kill.harness import CONSUMERS, Clients, System

SEED = os.environ.get("BRONZE_KILL_SEED", "9")
CLIENTS = 3
#: Before which request the command is killed, one run after the other.
KILLS = ("mark 0", "mark 1", "announce 0", "delete 0", "delete 3", "fold 0", "fold 2", "announce 0")


class Retaining(System):
    """A system in which the identities of some objects are over."""

    async def retain(self, *words: str, kill: str = "") -> int:
        """Run the command, which is killed before a request; returns its exit code."""
        env = {**programs.environment(), **self._account.env, **self.queue_env("admin"), wiring.KINDS: kill}
        with (self.root / "retain.log").open("ab") as log:
            words = ("retain", "--days", "1", "--entries-days", "1", "--by", "operator", "--yes", *words)
            command = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", wiring.__name__, *words), env=env, stdout=log, stderr=log
            )
            async with asyncio.timeout(limit_s(120)):
                return await command.wait()

    async def forget(self, entries: Collection[CatalogEntry]) -> set[str]:
        """End the identities of the submissions of some objects, as time does; returns their ids."""
        jetstream = await self.queue()
        try:
            (stream,) = await checker.streams(jetstream, "catalog.>")
            ids = {submission.submission_id for entry in entries for submission in entry.submissions}
            for submission_id in ids:
                # a submission in several objects has had several
                while message := await jetstream.get_last(stream, f"identity.{submission_id}"):
                    await jetstream.delete_message(stream, message.sequence)
            return ids
        finally:
            await jetstream.close()

    async def marks(self) -> dict[Lane, ExpiryMark]:
        bucket = S3Bucket(Settings())
        return dict(await read_marks(bucket, "bronze"))

    async def run(self, *words: str) -> tuple[int | None, str]:
        """The exit code of another command, and its output."""
        command = await self.command(*words)
        async with asyncio.timeout(limit_s(120)):
            out, _ = await command.communicate()
        return command.returncode, out.decode()


def with_deleted(found: Found, before: Found) -> Found:
    """Adds what was there before objects were deleted, and entries were folded."""
    later = {entry.file_path for entry in found.entries}
    return replace(
        found,
        objects={**before.objects, **found.objects},
        quarantine={**before.quarantine, **found.quarantine},
        sizes={**before.sizes, **found.sizes},
        entries=[*(entry for entry in before.entries if entry.file_path not in later), *found.entries],
    )


async def test_nothing_is_lost_or_doubled_and_the_rest_agrees(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """However often the command is killed, another run finishes it, while consumers are killed and records arrive.

    Exactly what has expired is gone, and what it listed in quarantine. Nothing else is lost, nothing is stored twice,
    `bronze verify` finds no fault, and a rebuilt catalog says the same.
    """
    rng = random.Random(int(SEED))
    system, deaths = Retaining(tmp_path), 0
    async with system, Clients(system, rng) as clients, asyncio.TaskGroup() as group:
        for name, command in (("api", "serve"), *((one, "consume") for one in CONSUMERS)):
            system.start(name, command, BRONZE_OBJECT_MESSAGES_MAX="2")  # many objects
        keep = group.create_task(system.keep())
        stop = asyncio.Event()
        senders = [group.create_task(clients.run(stop)) for _ in range(CLIENTS)]
        await clients.some_more(40)
        stop.set()
        await asyncio.gather(*senders)
        before = await system.drained()
        expired: list[CatalogEntry] = []
        for source in ("vehicles", "failures"):
            of_source = [entry for entry in before.entries if entry.source == source]
            expired += of_source[: len(of_source) // 2]
        forgotten = await system.forget(expired)
        # the first object that names a living identity ends what expires
        stop = asyncio.Event()
        senders = [group.create_task(clients.run(stop)) for _ in range(CLIENTS)]
        for number, kill in enumerate(KILLS):
            striking = group.create_task(system.strike(CONSUMERS[number % 2], SIGKILL))
            deaths += await system.retain(kill=kill) == -SIGKILL
            await striking
        assert await system.retain() == 0, (tmp_path / "retain.log").read_text()
        await clients.some_more(10)
        stop.set()
        await asyncio.gather(*senders)
        found = await system.drained()
        keep.cancel()
        gone = {entry.file_path for entry in expired}
        assert {key for key in before.objects if key not in found.objects} == gone
        listed = {message.key for key in gone for message in before.objects[key][0].quarantined}
        assert before.quarantine.keys() - found.quarantine.keys() == listed
        code, out = await system.run("verify", "--json", "-")
        assert code == 0, out
        for name in ("api", *CONSUMERS):
            with suppress(KeyError):
                await system.stop(name)
        code, out = await system.run("catalog", "rebuild", "--yes")
        assert code == 0, out
        jetstream = await system.queue()
        rebuilt, _ = await checker.read_catalog(jetstream)
        await jetstream.close()
    record_property("deaths of the command", deaths)
    assert deaths >= 6, (tmp_path / "retain.log").read_text()
    for submission_id in forgotten:
        clients.sent.submissions.pop(submission_id, None)
    verdict = check(clients.sent, with_deleted(found, before))
    assert verdict, f"BRONZE_KILL_SEED={SEED}, logs in {tmp_path}: {verdict}"
    assert facts(rebuilt) == facts(found.entries)


def facts(entries: Collection[CatalogEntry]) -> set[tuple[object, ...]]:
    return {(entry.file_path, entry.first, entry.last, entry.last_time, str(entry.totals)) for entry in entries}
