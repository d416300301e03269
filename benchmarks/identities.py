"""Identities in the queue's server: what one takes there. Each submission has one for a day, on a subject of its own.

A server that starts reads all of them again before it answers.
"""

import asyncio
import time
from pathlib import Path

from rich.progress import track
from uuid_utils import uuid7

from benchmarks.rounds import Figures, Found
from benchmarks.stand import Options, console, cpu_s, memory_bytes, running, say, stack
from bronze.protocol.documents import Identity
from bronze.protocol.message import AcceptedSubmission
from bronze.servers.catalog import identity_message
from bronze.servers.jetstream import JetStream
from bronze.settings import Settings
from local.exporters import Exporters
from local.programs import Process
from local.stack import Stack

IDENTITIES, IDENTITIES_QUICK = 300_000, 3_000
#: Of one object.
BATCH = 500


def identity(number: int) -> Identity:
    received = "2026-11-24T12:34:56.000000+00:00"
    accepted = AcceptedSubmission(
        submission_id=str(uuid7()),
        source="status",
        digest=f"{number:064x}",
        records=1_000,
        classification_id=None,
        classification_default=None,
        classification_count=1_000,
        received_at=received,
        trace_id=f"{number:032x}",
        traceparent=f"00-{number:032x}-{number:016x}-01",
    )
    path = "bronze/source=status/date=2026-11-24/hour=12/20261124T123456000000000-000-20261124T120000000-1.parquet"
    return Identity(
        accepted=accepted,
        epoch="20261124T120000000",
        lane=0,
        first_sequence=number,
        parts=1,
        parts_done=1,
        parts_quarantined=0,
        objects=[path],
    )


async def _store(settings: Settings, count: int) -> None:
    jetstream = await JetStream.connect(settings.queue_servers)
    for first in track(range(0, count, BATCH), f"{count:,} identities", console=console):
        messages = [identity_message(identity(number)) for number in range(first, min(first + BATCH, count))]
        await jetstream.publish_batch(messages, len(messages))
    await jetstream.close()


def measured(system: Stack, count: int) -> Figures:
    """Stores so many identities, and starts the server again."""
    (nats,) = [server for server in system.servers if server.name == "nats"]
    env = system.queue_env("admin")
    settings = Settings(
        nats_url=env["BRONZE_NATS_URL"], nats_user=env["BRONZE_NATS_USER"], nats_password=env["BRONZE_NATS_PASSWORD"]
    )
    with running(system, nats) as processes:
        before_bytes, before_s = _rest(processes["nats"])
        asyncio.run(_store(settings, count))
        after_bytes, after_s = _rest(processes["nats"])
    disk = sum(file.stat().st_size for file in Path(system.root).rglob("*.blk"))
    began = time.monotonic()
    with running(system, nats) as processes:
        start_s = time.monotonic() - began
        again_bytes, _ = _rest(processes["nats"])
    return {
        "identities": count,
        "memory, bytes per identity": (after_bytes - before_bytes) / count,
        "memory after a start, bytes per identity": (again_bytes - before_bytes) / count,
        "disk, bytes per identity": disk / count,
        "CPU nats, us per identity": (after_s - before_s) / count * 1e6,
        "start, s": start_s,
    }


def _rest(process: Process) -> tuple[int, float]:
    """The memory and the CPU of a server."""
    return memory_bytes(process), cpu_s(process)


def run(options: Options) -> Found:
    count = IDENTITIES_QUICK if options.quick else IDENTITIES
    say("storing identities in a queue server")
    return Found({f"{count:,} identities": [measured(stack("identities", Exporters()), count)]})
