"""`bronze notify` announces every object at least once, under one id, whatever happens to it and to the receiver."""

import base64
import json
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import jsonschema_rs
import pytest
from standardwebhooks import Webhook

from local import servers
from local.programs import Process, Program
from tests.inbox import OK, Answer, Inbox, Request, open_inbox
from tests.system.blackbox import System, ndjson, until, vehicles

SECRET = f"whsec_{base64.b64encode(bytes(range(32))).decode()}"


def role(system: System, inbox: Inbox, folder: Path, **env: str) -> Program:
    chosen = {"BRONZE_WEBHOOK_URL": inbox.url, "BRONZE_WEBHOOK_SECRETS": SECRET, "BRONZE_NOTIFY_DIR": str(folder)}
    return system.role("notify", **chosen, **env)


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    with open_inbox() as inbox:
        yield inbox


def announced(inbox: Inbox) -> set[str]:
    return {document["subject"] for document in inbox.documents() if document["type"] == "bronze.object.stored"}


def stored(system: System, mark: str) -> str:
    """The path of an object with new records."""
    accepted = system.post("vehicles", ndjson(vehicles(mark))).json()
    path: str = system.stored(accepted["submission_id"])["objects"][0]["file_path"]
    return path


def assert_genuine(inbox: Inbox, bucket: str) -> None:
    """Every request is signed, and each event has the id of its object, in every repetition."""
    ids: dict[str, set[str]] = {}
    for request in inbox.requests:
        document = Webhook(SECRET).verify(request.body, request.headers)
        assert request.headers["webhook-id"] == document["id"]
        if document["type"] == "bronze.object.stored":
            ids.setdefault(document["subject"], set()).add(document["id"])
    assert ids == {path: {str(uuid5(NAMESPACE_URL, f"s3://{bucket}/{path}"))} for path in ids}


@pytest.mark.timeout(300)
def test_every_object_is_announced(system: System, inbox: Inbox, mark: str, tmp_path: Path) -> None:
    """The process is killed before an event is taken, after that, after the answer and while it waits; the receiver
    fails, asks to wait, loses answers and restarts.
    """
    choices = random.Random(1)
    paths = [stored(system, f"{mark}-{number}") for number in range(6)]
    program = role(system, inbox, tmp_path)

    with system.running(program) as running:
        notify: Process = running["notify"]

        def kill(_: Request) -> Answer:
            notify.signal(signal.SIGKILL)
            return None

        def take_and_kill(request: Request) -> Answer:
            inbox.take(request)
            return kill(request)

        def take_and_lose_the_answer(request: Request) -> Answer:
            inbox.take(request)
            return None

        faults: list[Callable[[Request], Answer]] = [
            lambda _: (500, {}),
            lambda _: (503, {"Retry-After": "1"}),
            lambda _: None,
            take_and_lose_the_answer,
        ]
        for fault in (kill, take_and_kill, kill, take_and_kill):
            with inbox.lock:
                inbox.script += [*choices.sample(faults, 2), lambda _: OK, fault]
            paths.append(stored(system, f"{mark}-{len(paths)}"))
            until("the process is killed", lambda: not notify.alive())
            notify.restart()
        until("all are announced", lambda: announced(inbox) >= set(paths), 60)
        notify.signal(signal.SIGKILL)  # while it waits for events, or right after an answer
        paths.append(stored(system, f"{mark}-{len(paths)}"))
        notify.restart()
        until("all are announced", lambda: announced(inbox) >= set(paths), 60)
        in_bucket = {key for key in system.keys(f"{system.prefix}/source=") if "/source=canary/" not in key}
        until("the bucket is announced", lambda: announced(inbox) >= in_bucket, 60)
    assert_genuine(inbox, system.bucket)


def test_openlineage_events_name_the_submission_also_while_the_webhook_is_away(
    system: System, mark: str, tmp_path: Path
) -> None:
    """One run per object, with its begin and its end, and a facet that the API's own schema accepts."""
    file = tmp_path / "events.ndjson"
    with open_inbox() as away:
        variables = {
            "OPENLINEAGE__TRANSPORT__TYPE": "file",
            "OPENLINEAGE__TRANSPORT__LOG_FILE_PATH": str(file),
            "OPENLINEAGE__TRANSPORT__APPEND": "true",
        }
        program = role(system, away, tmp_path, BRONZE_NOTIFY_BEGIN="latest", **variables)
    with system.running(program) as running:
        until("it has begun", (tmp_path / "openlineage.cursor").exists)
        accepted = system.post("vehicles", ndjson(vehicles(mark))).json()
        (link,) = system.stored(accepted["submission_id"])["objects"]

        def of_object() -> list[dict[str, Any]]:
            run_id = str(uuid5(NAMESPACE_URL, f"s3://{system.bucket}/{link['file_path']}"))
            lines = file.read_text().splitlines() if file.exists() else []
            return [found for found in map(json.loads, lines) if found["run"]["runId"] == run_id]

        until("its run has ended", lambda: len(of_object()) >= 2)
        running["notify"].restart()
    start, complete = of_object()
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert start["eventTime"] < complete["eventTime"]
    facet = complete["run"]["facets"]["bronze_write"]
    assert accepted["submission_id"] in {one["submissionId"] for one in facet["submissions"]}
    assert accepted["classification_id"] in {one.get("classificationId") for one in facet["submissions"]}
    schema = system.get(facet["_schemaURL"].removeprefix(system.stack.api_url).partition("#")[0]).json()
    jsonschema_rs.validator_for(schema).validate({"bronze_write": facet})


def test_snapshots_of_tables_are_announced(system: System, inbox: Inbox, mark: str, tmp_path: Path) -> None:
    """With the trace of their commit."""
    namespace = {"BRONZE_TABLE_NAMESPACE": mark.replace("-", "_"), "BRONZE_TABLE_INTERVAL_S": "0.2"}
    reader = servers.tables_env(system.stack.account)
    program = role(system, inbox, tmp_path, BRONZE_NOTIFY_TABLES="true", **namespace, **reader)
    with system.running(system.role("table", **namespace), program):
        path = stored(system, mark)

        def committed() -> list[dict[str, Any]]:
            return [found for found in inbox.documents() if found["type"] == "bronze.table.committed"]

        event = until("a snapshot is announced", lambda: [one for one in committed() if one["subject"] == "vehicles"])[
            0
        ]
        assert event["data"]["records"] > 0
        assert event["data"]["objects"] > 0
        until("its trace is stored", lambda: system.trace(event["traceparent"].split("-")[1]))
        until("the object is announced", lambda: path in announced(inbox))


def test_a_receiver_that_is_away_gets_everything_later(system: System, mark: str, tmp_path: Path) -> None:
    """And in the meantime ingestion goes on as ever."""
    with open_inbox() as inbox:
        program = role(system, inbox, tmp_path, BRONZE_NOTIFY_BEGIN="latest")
        port = inbox.port
    with system.running(program):
        failures = {"bronze_receiver": "webhook", "error_type": "unavailable"}
        until("it has begun", (tmp_path / "webhook.cursor").exists)
        paths = [stored(system, f"{mark}-{number}") for number in range(3)]
        until("it has failed", lambda: system.metrics("notify").sum("bronze_notify_events_total", **failures) > 0)
        with open_inbox(port) as inbox:
            until("all are announced", lambda: announced(inbox) >= set(paths), 60)
            assert_genuine(inbox, system.bucket)
    assert "not-for-logs" not in system.log("notify").read_text()
