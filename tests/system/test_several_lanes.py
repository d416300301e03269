"""A source with several lanes under operation: restarts, another number of lanes, a rebuilt catalog."""

import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import httpx

from local import servers
from local.machine import limit_s
from local.programs import Process, environment
from tests.system.blackbox import System, ndjson, vehicles

SUBMISSIONS = 24
EXIT_S_MAX = 20


def bronze(system: System, *arguments: str) -> str:
    """The output of a command, which has to succeed."""
    done = subprocess.run(
        [servers.executable("bronze"), *arguments],
        env={**environment(), **system.role("consumer").env},
        capture_output=True,
        text=True,
        check=False,
        timeout=limit_s(60),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def send(system: System, mark: str, numbers: Iterable[int]) -> dict[int, Any]:
    """Sends submissions of two records, each under its own key, and returns their 202 answers."""
    answers = {}
    for number in numbers:
        answer = system.post("vehicles", ndjson(vehicles(f"{mark}-{number}-", 2)), Idempotency_Key=f"{mark}-{number}")
        assert answer.status_code == 202, answer.text
        answers[number] = answer.json()
    return answers


def lanes_in_use(system: System, answers: dict[int, Any]) -> set[tuple[str, int]]:
    """Epoch and number of the lanes of these submissions, after all are stored."""
    found = set()
    for answer in answers.values():
        for link in system.stored(answer["submission_id"])["objects"]:
            contents = system.get(link["url"]).json()
            found.add((contents["epoch"], contents["lane"]))
    return found


def assert_ended(system: System, running: Mapping[str, Process]) -> None:
    """Checks that the roles end by themselves with the exit code of a failure."""
    with suppress(httpx.TransportError):
        assert system.get("/readyz").status_code == 503  # an idle API notices the change by this probe
    assert {name: process.wait(EXIT_S_MAX) for name, process in running.items()} == {"api": 1, "consumer": 1}


def test_several_lanes_and_another_number_of_them(branch: System, mark: str) -> None:
    """Each record is stored once, in any lane. A restart, another number of lanes and a rebuilt catalog change no
    answer.
    """

    def roles(lanes: int) -> tuple[Any, Any]:
        number = {"BRONZE_LANES": str(lanes)}
        return branch.role("api", **number), branch.role("consumer", **number)

    with branch.queue():
        with branch.running(*roles(3)):
            sent = send(branch, mark, range(SUBMISSIONS))
            of_three = lanes_in_use(branch, sent)
            assert {lane for _, lane in of_three} == {0, 1, 2}
        with branch.running(*roles(3)) as running:
            sent |= send(branch, mark, range(SUBMISSIONS, SUBMISSIONS + 6))
            assert send(branch, mark, range(6)) == {number: sent[number] for number in range(6)}
            assert lanes_in_use(branch, sent) == of_three

            output = bronze(branch, "lanes", "2", "--yes")
            assert "now has 2 lanes" in output
            assert "BRONZE_LANES=2" in output
            assert_ended(branch, running)

        refused = Process(roles(3)[1], branch.log("consumer"))
        assert refused.wait(EXIT_S_MAX) == 2
        log = branch.log("consumer").read_text()
        assert "BRONZE_LANES is '2' for the stream and '3' in the settings" in log

        with branch.running(*roles(2)) as running:
            assert send(branch, mark, sent) == sent, "a retry gets the 202 that it got"
            more = send(branch, mark, range(100, 100 + SUBMISSIONS))
            of_two = lanes_in_use(branch, more)
            assert {lane for _, lane in of_two} == {0, 1}
            assert not of_two & of_three
            statuses = {number: branch.stored(answer["submission_id"]) for number, answer in (sent | more).items()}

            output = bronze(branch, "catalog", "rebuild", "--yes")
            assert f"{len(branch.keys())} entries" in output
            assert_ended(branch, running)
        with branch.running(*roles(2)):
            statuses_after = {
                number: branch.stored(answer["submission_id"]) for number, answer in (sent | more).items()
            }
            assert statuses_after == statuses
            assert send(branch, mark, sent) == sent
            more |= send(branch, mark, range(200, 203))
            lanes_in_use(branch, more)
    payloads = [record for number in sent | more for record in vehicles(f"{mark}-{number}-", 2)]
    assert branch.payloads(mark) == sorted(payloads)
