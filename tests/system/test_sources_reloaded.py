"""An edited file of sources is taken while the system runs, without a refused connection; a bad one changes nothing."""

import json
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import httpx
import pytest

from local import servers
from local.machine import limit_s
from local.programs import Process, environment
from tests.system.blackbox import NO_EXEMPLARS, System, until

FIXED = """
[fixed]
description = "Is in each file."
fields = [{ name = "c", type = "int32", description = "-" }]
"""
FIRST = f"""{FIXED}
[things]
description = "A thing."
fields = [{{ name = "a", type = "int32", description = "-" }}]
"""
SECOND = f"""{FIXED}
[things]
description = "A thing."
version = 2
fields = [
    {{ name = "a", type = "int64", widened_from = "int32", widened_since = 2, description = "-" }},
    {{ name = "b", type = "string", since = 2, description = "-" }},
]

[readings]
description = "Anything."
raw = true
"""
BAD = "[things"


@dataclass(frozen=True)
class Running:
    system: System
    file: Path
    processes: dict[str, Process]

    def reload(self, name: str, text: str) -> None:
        self.file.write_text(text)
        self.processes[name].signal(signal.SIGHUP)

    def says(self, name: str, text: str) -> bool:
        return text in self.system.log(name).read_text()

    def check(self, text: str) -> "subprocess.CompletedProcess[str]":
        file = self.file.with_name("checked.toml")
        file.write_text(text)
        return subprocess.run(
            [servers.executable("bronze"), "sources", "check", str(file)],
            env={**environment(), **self.system.role("api").env},
            capture_output=True,
            text=True,
            timeout=limit_s(60),
            check=False,
        )


@pytest.fixture(scope="module")
def running(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("reloaded")
    file = folder / "own.toml"
    file.write_text(FIRST)
    branch = system.branch(folder / "state")
    own = replace(branch, env={**branch.env, **NO_EXEMPLARS, "BRONZE_SOURCES": str(file)})
    with own.queue(), own.running(own.role("api"), own.role("consumer")) as processes:
        yield Running(own, file, processes)


def test_a_bad_file_changes_nothing(running: Running) -> None:
    """Neither one that cannot be read nor one that contradicts what is registered; both are said in the log."""
    good = running.file.read_text()
    contradicting = good.replace(FIXED, FIXED.replace("int32", "string"))
    contradicts = "source fixed, field c: the registered version 1 has int32"
    for name in ("api", "consumer"):
        for text, reason in ((BAD, "Expected ']'"), (contradicting, contradicts)):
            running.reload(name, text)
            said = f"SIGHUP: the sources stay as they are: {running.file}: {reason}"
            until(f"{name} refuses the file", partial(running.says, name, said))
    assert running.check(BAD).returncode == 2
    refused = running.check(contradicting)
    assert refused.returncode == 1
    assert re.search("fixed +refused", refused.stdout)
    running.file.write_text(good)
    answer = running.system.post("things", b'{"a": 1}')
    running.system.stored(answer.json()["submission_id"])


def test_a_good_file_is_taken_under_load(running: Running) -> None:
    """By the same processes; no connection is refused, no record is lost or stored twice, and the new fields and
    sources are there.
    """
    checked = running.check(SECOND)
    assert (checked.returncode, checked.stdout.splitlines()[-1]) == (0, "The file may be used")
    statuses: list[int] = []
    accepted: list[str] = []
    done = threading.Event()

    def send() -> None:
        number = 0
        while not done.is_set():
            body = json.dumps({"a": number, "b": "x"}).encode()
            try:
                answer = running.system.post("things", body, Idempotency_Key=f"reloaded-{number}")
            except (httpx.RemoteProtocolError, httpx.ReadError):
                continue  # the API closed the connection before it had read the request: an end, or a reset
            statuses.append(answer.status_code)
            if answer.status_code == httpx.codes.ACCEPTED:
                accepted.append(answer.json()["submission_id"])
            number += 1

    sender = threading.Thread(target=send)
    sender.start()
    try:
        pids = {name: process.pid for name, process in running.processes.items()}
        for name in ("consumer", "api"):
            running.reload(name, SECOND)
            until(f"{name} starts again", partial(running.says, name, "SIGHUP: starting again"))
        until("the new source exists", lambda: running.system.get("/v1/sources/readings/schema").status_code == 200)
        before = len(accepted)
        until("more is accepted", lambda: len(accepted) > before + 5)
    finally:
        done.set()
        sender.join()
    assert set(statuses) == {httpx.codes.ACCEPTED}
    assert {name: process.pid for name, process in running.processes.items()} == pids
    assert all(process.alive() for process in running.processes.values())
    for submission_id in accepted:
        running.system.stored(submission_id)
    raw = running.system.post("readings", b'[1, "two"]', Content_Type="application/json")
    assert raw.status_code == httpx.codes.ACCEPTED, raw.text
    running.system.stored(raw.json()["submission_id"])
    rows = running.system.rows("things")
    assert {row.get("b") for row in rows} == {None, "x"}
    assert len([row for row in rows if row["_submission_id"] in set(accepted)]) == len(accepted)
    assert [row["_payload"] for row in running.system.rows("readings")] == ["1", '"two"']


def test_the_same_file_is_not_taken_again(running: Running) -> None:
    running.reload("api", running.file.read_text())
    until("the API says so", lambda: running.says("api", "own.toml is the same as at the start"))
