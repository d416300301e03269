"""One classification with two sources is found by each of its ids, over HTTP and on the command line."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from local import servers
from local.builds import REPOSITORY
from local.machine import limit_s
from local.programs import environment
from tests.system.blackbox import STOP_S_MAX, System, until

SNIPPET = re.compile(r"<!-- test: follow -->\s*```python\n(.*?)```", re.DOTALL)
DOCUMENTS = [REPOSITORY / "docs" / "lineage.md", REPOSITORY / "README.md"]
STATUS = {
    "operator": "UA",
    "run_number": 1545,
    "origin": "EWR",
    "destination": "IAH",
    "scheduled_at": "2013-01-01T05:15:00Z",
}


def command(system: System, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [servers.executable("bronze"), "lineage", *arguments],
        env={**environment(), "BRONZE_API_URL": system.url},
        capture_output=True,
        text=True,
        timeout=limit_s(60),
        check=False,
    )


@contextmanager
def followed(system: System, output: Path, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A program that follows new objects and writes them to a file."""
    env = {**environment(), **system.role("api").env, **system.stack.queue_env("reader")}
    with output.open("wb") as file:
        process = subprocess.Popen(words, env=env, stdout=file)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def lineage_of(system: System, by: str, value: str, objects: int = 1) -> dict[str, Any]:
    """The lineage over HTTP, as soon as it has so many objects, without values that change with time."""

    def answer() -> dict[str, Any] | None:
        found = system.get(f"/v1/lineage?{urlencode({by: value})}")
        assert found.status_code in {200, 404}, found.text
        body: dict[str, Any] = found.json()
        if found.status_code != 200 or len(body["objects"]) != objects:
            return None
        # an object that is not in the catalog index yet is found without the end of its write
        return still(body) if all(written["ended_at"] for written in body["objects"]) else None

    return until(f"the chain of {by} {value}", answer)


def still(chain: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in chain.items() if name != "lag_s"}


def without_ends(tree: Any) -> Any:
    """A rebuild appends the entries again, and when an entry was appended is when its write had ended."""
    match tree:
        case dict():
            return {name: without_ends(value) for name, value in tree.items() if name != "ended_at"}
        case list():
            return [without_ends(value) for value in tree]
    return tree


def chains(system: System, ids: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    return {by: lineage_of(system, by, value, 2 if by == "classification_id" else 1) for by, value in ids.items()}


def test_a_classification_is_found_by_each_of_its_ids_also_after_loss_of_index_and_catalog(
    branch: System, mark: str, tmp_path: Path
) -> None:
    """Vehicle and status with their traces, objects and times: the answers stay the same after the catalog index is
    deleted, and after the catalog is rebuilt from the bucket.
    """
    views = tmp_path / "views"
    api = branch.role("api", BRONZE_VIEW_DIR=str(views))
    with branch.queue(), branch.running(branch.role("consumer")):
        with branch.running(api):
            vehicle = branch.post(
                "vehicles", b'{"vehicle_id": "N1"}', Bronze_Classification_Id=mark, Bronze_File_Name="fleet.ndjson"
            ).json()
            status = branch.post("status", json.dumps({**STATUS, "classification_id": mark}).encode()).json()
            (of_vehicle,), (of_status,) = (
                branch.stored(value["submission_id"])["objects"] for value in (vehicle, status)
            )
            upload = branch.get(of_vehicle["url"]).json()
            ids = {
                "submission_id": vehicle["submission_id"],
                "trace_id": vehicle["trace_id"],
                "file_path": of_vehicle["file_path"],
                "classification_id": mark,
            }
            before = chains(branch, ids)
            for by, value in ids.items():
                printed = command(branch, f"--{by.replace('_', '-')}", value, "--json")
                assert printed.returncode == 0, printed.stderr
                assert still(json.loads(printed.stdout)) == before[by]
            read = command(branch, mark)
            assert read.returncode == 0, read.stderr
            for value in (
                vehicle["submission_id"],
                status["trace_id"],
                of_vehicle["file_path"],
                of_status["file_path"],
            ):
                assert value in read.stdout
            nothing = command(branch, "nobody")
            assert (nothing.returncode, nothing.stdout) == (1, "")
            assert "Nothing is known of 'nobody'" in nothing.stderr
        for file in views.iterdir():
            file.unlink()
        with branch.running(api):
            assert chains(branch, ids) == before
        rebuilt = subprocess.run(
            [servers.executable("bronze"), "catalog", "rebuild", "--yes"],
            env={**environment(), **branch.role("consumer").env, **branch.stack.queue_env("admin")},
            capture_output=True,
            text=True,
            timeout=limit_s(60),
            check=False,
        )
        assert rebuilt.returncode == 0, rebuilt.stderr
        with branch.running(api):
            assert without_ends(chains(branch, ids)) == without_ends(before)
    assert command(branch, mark).returncode == 3  # no API answers

    run = before["classification_id"]
    assert {value["submission_id"] for value in run["submissions"]} == {
        vehicle["submission_id"],
        status["submission_id"],
    }
    assert {value["file_path"] for value in run["objects"]} == {of_vehicle["file_path"], of_status["file_path"]}
    (line,), (of,) = before["submission_id"]["submissions"], before["submission_id"]["objects"]
    assert line in run["submissions"]
    assert of in run["objects"]
    for by in ("trace_id", "file_path"):
        assert (before[by]["submissions"], before[by]["objects"]) == ([line], [of])
    assert line["trace_id"] == vehicle["trace_id"]
    assert (line["source"], line["status"], line["records"]) == ("vehicles", "stored", 1)
    assert (line["classification_id"], line["origin"]) == (mark, "fleet.ndjson")
    assert line["objects"] == [{"file_path": of_vehicle["file_path"], "records": 1}]
    assert line["received_at"] < line["queued_at"] < line["stored_at"] == of["stored_at"]
    assert (of["trace_id"], of["bytes"], of["records"]) == (upload["trace_id"], upload["bytes"], 1)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_new_objects_are_followed_by_a_plain_client(system: System, document: Path, tmp_path: Path) -> None:
    """The script of the documentation runs as printed."""
    (snippet,) = SNIPPET.findall(document.read_text(encoding="utf-8"))
    output = tmp_path / "output"
    with followed(system, output, sys.executable, "-c", snippet):
        fence = system.fence()
        until(
            "the new object's line", lambda: f"vehicles {fence['records']} {fence['file_path']}" in output.read_text()
        )


def test_a_plain_client_continues_at_a_sequence(system: System, tmp_path: Path) -> None:
    """As the last line of the script in docs/lineage.md says."""
    (snippet,) = SNIPPET.findall(DOCUMENTS[0].read_text(encoding="utf-8"))
    system.fence(), system.fence()
    everything, rest = tmp_path / "everything", tmp_path / "rest"
    with followed(system, everything, sys.executable, "-c", snippet):
        until("two objects", lambda: everything.read_text().count("\n") > 1)
    last = everything.read_text().splitlines()[1]
    begin = f"follow(DeliverPolicy.BY_START_SEQUENCE, {last.split()[0]})"
    with followed(system, rest, sys.executable, "-c", snippet.replace("follow(DeliverPolicy.ALL)", begin)):
        until("the object to continue at", rest.read_text)
    assert rest.read_text().splitlines()[0] == last


def test_follow_prints_each_object_once_and_survives_the_queue(branch: System, tmp_path: Path) -> None:
    """Objects stored after a kill of the queue are printed, too; Ctrl-C ends the command with success."""
    output = tmp_path / "output"
    bronze = servers.executable("bronze")
    with branch.queue() as queue, branch.running(branch.role("api"), branch.role("consumer")):
        early = branch.fence()
        until("the early object", lambda: branch.keys(early["file_path"]))
        words = ("lineage", "follow", "--json", "--from-start", "--source", "vehicles")
        with followed(branch, output, bronze, *words) as process:

            def printed() -> list[str]:
                return [json.loads(line)["file_path"] for line in output.read_text().splitlines()]

            until("the early object's line", lambda: printed() == [early["file_path"]])
            queue.signal(signal.SIGKILL)
            queue.wait(STOP_S_MAX)
            queue.restart()
            until("the API is ready again", lambda: branch.get("/readyz").status_code == 200)
            late = branch.fence()
            until("the late object's line", lambda: printed() == [early["file_path"], late["file_path"]])
            process.send_signal(signal.SIGINT)
            assert process.wait(STOP_S_MAX) == 0
