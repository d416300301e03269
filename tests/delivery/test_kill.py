"""The delivery promise, on real processes that are killed and paused at every step.

BRONZE_KILL_SEED (a number, or `random`) and BRONZE_KILL_ROUNDS choose the test; a round takes about 40 s. The seed
decides the submissions, the processes and steps of kills, and their order; the operating system decides the rest.
"""

import asyncio
import os
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL, SIGSTOP, Signals
from typing import Any

import pytest

from tests.delivery.kill import wiring
from tests.delivery.kill.checker import Found, check
from tests.delivery.kill.harness import CLOSED, CONSUMERS, Clients, Submission, System, attempts
from tests.delivery.kill.wiring import DEADLY, SLOW, Step

SEED = os.environ.get("BRONZE_KILL_SEED", "9")
#: Rounds of kills with the real lock, and as many with a lock that every consumer gets.
ROUNDS = int(os.environ.get("BRONZE_KILL_ROUNDS", "3"))
CLIENTS = 6
LATE_SENDS = 6
RETRIES = 200
KILLS_MIN = 5
STEPS = (Step.READ_PUT, Step.PUT_CATALOG, Step.CATALOG_PURGE, Step.PUBLISH_202)
#: Some pauses are longer than the deadline, the lock's expiry and the purge grace, so that others have taken over.
PAUSE_S = (0.5, 4.0)


def blows(rng: random.Random, rounds: int) -> list[tuple[Step | str, Signals]]:
    """The kills and pauses: in each round at every step and of every kind of process, in random order."""
    plan: list[tuple[Step | str, Signals]] = []
    for _ in range(rounds):
        of_round: list[tuple[Step | str, Signals]] = [
            *((step, SIGKILL) for step in STEPS),
            *((step, SIGSTOP) for step in rng.sample(STEPS, 2)),
            *((name, SIGKILL) for name in ("api", rng.choice(CONSUMERS), "nats")),
            (rng.choice(["api", *CONSUMERS]), SIGSTOP),
        ]
        rng.shuffle(of_round)
        plan += of_round
    plan.insert(rng.randrange(len(plan)), ("seaweedfs", SIGKILL))
    return plan


async def meet_deadly_record(clients: Clients) -> Submission:
    """Send a record that kills its decoder, among others, and wait until it is in quarantine."""
    burst = [clients.submission("vehicles", keyed=True) for _ in range(8)]
    deadly = clients.submission("vehicles", DEADLY.decode(), keyed=True)
    burst.insert(4, deadly)
    answers = await asyncio.gather(*map(clients.deliver, burst))
    async for _ in attempts(120, "the deadly record was not set aside"):
        if await clients.status(answers[4]["submission_id"]) == "quarantined":
            break
    return deadly


async def retry(clients: Clients, rng: random.Random) -> None:
    """Checks that a retry under the same key gets the same 202, and another body a 409."""

    async def one(submission: Submission, accepted: Mapping[str, Any]) -> None:
        again = await clients.settle(submission)
        assert (again.status_code, again.json()) == (202, accepted)
        other = await clients.settle(replace(submission, records=submission.records * 2))
        assert other.status_code == 409

    keyed = [(submission, accepted) for submission, accepted in clients.accepted if submission.key]
    for _ in range(min(RETRIES, len(keyed)) // 4):
        await asyncio.gather(*(one(*pair) for pair in rng.sample(keyed, 4)))


def reasons(found: Found, word: str) -> set[str]:
    """The quarantined records whose reason contains a word."""
    return {
        record
        for contents, _ in found.objects.values()
        for aside in contents.quarantined
        if word in aside.reason
        for record in found.quarantine[aside.key]
    }


@pytest.mark.timeout(240 + 120 * ROUNDS)
async def test_killed_anywhere_each_accepted_record_is_there_exactly_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    """Whichever process is killed or paused at any step: each accepted record is in an object exactly once, or in
    quarantine because it kills its decoder. The catalog equals the bucket, no lane has a gap or an overlap, and retries
    get the same answers. The API needs keys: it refuses nobody who has one, and each submission has its principal.
    """
    seed = random.SystemRandom().randrange(10**6) if SEED == "random" else int(SEED)
    with capsys.disabled():
        sys.stdout.write(f"\nkill test: BRONZE_KILL_SEED={seed} BRONZE_KILL_ROUNDS={ROUNDS}, logs in {tmp_path}\n")
    rng = random.Random(seed)
    system, stop = System(tmp_path), asyncio.Event()
    try:
        async with system, Clients(system, rng) as clients, asyncio.TaskGroup() as group:
            clients.use(await system.keys("create", "fleet", "--scope", "ingest:*"))
            system.start("api", "serve", **CLOSED)
            for name in CONSUMERS:
                system.start(name, "consume")
            keep = group.create_task(system.keep())
            senders = [group.create_task(clients.run(stop)) for _ in range(CLIENTS)]

            async def half() -> None:
                late = [group.create_task(clients.send_late(foreign=one % 2 == 1)) for one in range(LATE_SENDS)]
                for target, number in blows(rng, ROUNDS):
                    await system.strike(target, number, rng.uniform(*PAUSE_S))
                await asyncio.gather(*late)

            await half()
            deadly = await meet_deadly_record(clients)
            for name in CONSUMERS:
                await system.stop(name)
                system.start(name, "consume", **{wiring.LOCK: wiring.HANDED})
            await half()
            stop.set()
            await asyncio.gather(*senders)
            await system.drained()
            await retry(clients, rng)
            found = await system.drained()
            keep.cancel()
    finally:
        with capsys.disabled():
            sys.stdout.write(f"{system.table()}\n")

    sent = clients.sent
    with capsys.disabled():
        sys.stdout.write(
            f"{len(sent.accepted)} records accepted, {len(found.objects)} objects, {len(found.quarantine)} set aside, "
            f"{len(sent.foreign)} records late with another body, {len(clients.late)} late copies\n"
        )
    record_property("kills and pauses", system.kills.total())
    record_property("records accepted", len(sent.accepted))
    record_property("objects", len(found.objects))
    verdict = check(sent, found)
    assert verdict, f"BRONZE_KILL_SEED={seed}, logs in {tmp_path}: {verdict}"
    assert {one.principal for entry in found.entries for one in entry.submissions} == {"fleet"}
    unfit = {record for record in sent.accepted if record.startswith('{"bad"')}
    assert unfit
    assert unfit <= reasons(found, "asked for quarantine") <= unfit | sent.unknown
    assert reasons(found, "died") == set(deadly.records)
    assert reasons(found, "another body") == sent.foreign
    listed = {one.submission_id for contents, _ in found.objects.values() for one in contents.duplicates}
    assert clients.late <= listed
    for step in STEPS:
        kills = sum(times for (_, at, by), times in system.kills.items() if (at, by) == (step, SIGKILL.name))
        assert kills >= min(KILLS_MIN, 2 * ROUNDS)


async def test_the_death_of_a_decoder_is_not_blamed_on_another_lane(tmp_path: Path) -> None:
    """One process decodes for all lanes: a record that is decoded when another kills the process stays out of
    quarantine, although both are decoded again whenever the process starts.
    """
    async with System(tmp_path) as system, Clients(system, random.Random(9)) as clients, asyncio.TaskGroup() as group:
        system.start("api", "serve")
        deadly = clients.submission("vehicles", DEADLY.decode(), keyed=True)
        slow = clients.submission("failures", SLOW.decode(), keyed=True)
        await asyncio.gather(*map(clients.deliver, (deadly, slow)))
        system.start("consumer", "consume")
        keep = group.create_task(system.keep())
        found = await system.drained()
        keep.cancel()
    verdict = check(clients.sent, found)
    assert verdict, str(verdict)
    assert reasons(found, "died") == set(deadly.records)


async def test_checker_finds_the_loss_of_an_entry_before_its_object(tmp_path: Path) -> None:
    """If the catalog entry is appended before the PUT, a kill loses records, and the checker finds them."""
    async with System(tmp_path) as system, Clients(system, random.Random(9)) as clients, asyncio.TaskGroup() as group:
        system.start("api", "serve")
        system.start("consumer", "consume", **{wiring.CATALOG_FIRST: "1"})
        keep = group.create_task(system.keep())
        stop = asyncio.Event()
        sender = group.create_task(clients.run(stop))
        await system.strike(Step.CATALOG_PUT, SIGKILL)
        stop.set()
        await sender
        found = await system.drained()
        keep.cancel()
    verdict = check(clients.sent, found)
    missing = [entry for entry in found.entries if entry.file_path not in found.objects]
    theirs = {one.submission_id for entry in missing for one in entry.submissions}
    assert verdict.lost
    assert set(verdict.lost) <= {
        record for sent, answer in clients.accepted if answer["submission_id"] in theirs for record in sent.records
    }
    assert verdict.catalog == [f"{key} is not in the bucket" for key in sorted(entry.file_path for entry in missing)]
    assert not verdict.doubled
