"""The delivery promise, on real processes that are killed and paused at every step.

BRONZE_KILL_SEED (a number, or `random`) and BRONZE_KILL_ROUNDS choose the test; a round takes about 40 s. The seed
decides the submissions, the processes and steps of kills, and their order; the operating system decides the rest.
"""

import asyncio
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from signal import SIGKILL, SIGSTOP, Signals
from typing import Any

import pytest

from tests.delivery.kill import wiring
from tests.delivery.kill.checker import Found, check
from tests.delivery.kill.harness import CLOSED, CONSUMERS, Clients, Submission, System, attempts
from tests.delivery.kill.wiring import DEADLY, SLOW, Step

SEED = os.environ.get("BRONZE_KILL_SEED", "9")
#: Rounds of kills with the real lock, and as many with a lock that every consumer gets: `make kill-test` and `make
#: prove` have more.
ROUNDS = int(os.environ.get("BRONZE_KILL_ROUNDS", "1"))
CLIENTS = 6
#: So many that the groups are large.
GROUP_CLIENTS = 40
GROUP_MESSAGES_LEAST = 8
#: Longer than the API waits for the reply to a group, so that clients get the answers after a lost one.
GROUP_TIMEOUT_S = 10.0
LATE_SENDS = 6
RETRIES = 200
KILLS_MIN = 5
STEPS = (Step.READ_PUT, Step.PUT_CATALOG, Step.CATALOG_PURGE, Step.PUBLISH_202)
#: Also the server that is killed while the process is paused.
GROUP_BLOWS = (
    *((step, SIGKILL, "") for step in (Step.GROUP_MESSAGES, Step.GROUP_ANSWERS, Step.PUBLISH_202)),
    *((step, SIGSTOP, "") for step in (Step.GROUP_MESSAGES, Step.GROUP_ANSWERS)),
    *((step, SIGSTOP, "nats") for step in (Step.GROUP_MESSAGES, Step.GROUP_ANSWERS)),
    ("api", SIGKILL, ""),
    ("nats", SIGKILL, ""),
)
#: Some pauses are longer than the deadline, the lock's expiry and the purge grace, so that others have taken over.
PAUSE_S = (0.5, 4.0)


def blows(rng: random.Random, rounds: int, pauses: Iterator[Step]) -> list[tuple[Step | str, Signals]]:
    """The kills and pauses, in random order: in each round a kill at every step and of every kind of process, and
    pauses at the next two of `pauses`.
    """
    plan: list[tuple[Step | str, Signals]] = []
    for _ in range(rounds):
        of_round: list[tuple[Step | str, Signals]] = [
            *((step, SIGKILL) for step in STEPS),
            *((step, SIGSTOP) for step in islice(pauses, 2)),
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
    pauses = cycle(rng.sample(STEPS, len(STEPS)))
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
                for target, number in blows(rng, ROUNDS, pauses):
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
        assert any((at, by) == (step, SIGSTOP.name) for _, at, by in system.kills)


@pytest.mark.timeout(240 + 60 * ROUNDS)
async def test_killed_while_submissions_are_published_in_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    """Wherever the API or the queue is killed or paused while large groups are on their way: each accepted record is
    stored once, none of a group is accepted because another one is, and retries get the same answers.
    """
    seed = random.SystemRandom().randrange(10**6) if SEED == "random" else int(SEED)
    rng, stop, groups = random.Random(seed), asyncio.Event(), tmp_path / "groups"
    async with (
        System(tmp_path) as system,
        Clients(system, rng, GROUP_TIMEOUT_S) as clients,
        asyncio.TaskGroup() as group,
    ):
        system.start("api", "serve", **{wiring.GROUPS: str(groups)})
        system.start("consumer", "consume")
        keep = group.create_task(system.keep())
        senders = [group.create_task(clients.run(stop)) for _ in range(GROUP_CLIENTS)]
        for _ in range(ROUNDS):
            for target, number, server in rng.sample(GROUP_BLOWS, len(GROUP_BLOWS)):
                await system.strike(target, number, rng.uniform(*PAUSE_S), server=server)
                await clients.some_more(GROUP_CLIENTS)
        stop.set()
        await asyncio.gather(*senders)
        await system.drained()
        await retry(clients, rng)
        found = await system.drained()
        keep.cancel()
    sizes = [int(line) for line in groups.read_text().split()]
    with capsys.disabled():
        sys.stdout.write(
            f"\nkill test, groups: BRONZE_KILL_SEED={seed}\n{system.table()}\n{len(clients.sent.accepted)} records "
            f"accepted, {len(sizes)} groups of {sum(sizes) / len(sizes):.1f} messages, at most {max(sizes)}\n"
        )
    record_property("kills and pauses", system.kills.total())
    record_property("records accepted", len(clients.sent.accepted))
    record_property("groups", len(sizes))
    verdict = check(clients.sent, found)
    assert verdict, f"BRONZE_KILL_SEED={seed}, logs in {tmp_path}: {verdict}"
    assert max(sizes) >= GROUP_MESSAGES_LEAST


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


async def test_checker_finds_the_loss_of_a_group_that_is_believed(tmp_path: Path) -> None:
    """If a group counts as stored although its reply is lost, a kill of the queue loses it. The checker finds that."""
    groups, stop = str(tmp_path / "groups"), asyncio.Event()
    rng = random.Random(9)
    async with (
        System(tmp_path) as system,
        Clients(system, rng, GROUP_TIMEOUT_S) as clients,
        asyncio.TaskGroup() as group,
    ):
        system.start("api", "serve", **{wiring.GROUPS: groups, wiring.GROUPS_BELIEVED: "1"})
        system.start("consumer", "consume")
        keep = group.create_task(system.keep())
        senders = [group.create_task(clients.run(stop)) for _ in range(CLIENTS)]
        await system.strike(Step.GROUP_MESSAGES, SIGSTOP, server="nats")
        await clients.some_more(CLIENTS)
        stop.set()
        await asyncio.gather(*senders)
        found = await system.drained()
        keep.cancel()
    verdict = check(clients.sent, found)
    assert verdict.lost
    assert not verdict.doubled


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
