"""A refusal says what to correct and stores nothing. A submission that gets a 503 is accepted later, once."""

import gzip
import json
import random
import signal
import threading
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.system.blackbox import System, ndjson, until, vehicles

MIB = 2**20
#: Bodies that are sent one after another, so that a moment in which the machine is busy does not decide.
BOMBS = 3
#: Short limits, so that the API soon knows that a publish is lost and not late.
IMPATIENT = {"BRONZE_DEADLINE_S": "1", "BRONZE_PURGE_GRACE_S": "2"}


@contextmanager
def nothing_is_kept(system: System, mark: str) -> Iterator[None]:
    """Checks that submissions in the context leave no message in the lane, and no record or object in the bucket."""
    before = system.fence()
    keys = system.keys("")
    yield
    after = system.fence()
    assert (after["first"], after["last"]) == (before["last"] + 1, before["last"] + 1)
    assert set(system.keys("")) - set(keys) == {after["file_path"]}
    assert system.payloads(mark) == []


def problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """Checks and returns the problem document of an answer."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    body: dict[str, Any] = answer.json()
    assert (body["type"], body["status"]) == (f"/problems/{kind}", status)
    assert body["title"]
    assert len(body["trace_id"]) == 32
    return body


def wrong_in_record_3(mark: str) -> bytes:
    return ndjson([*vehicles(mark, 3), b'{"vehicle_id": "%s", "seats": "many"}' % mark.encode(), *vehicles(mark)])


def too_many(mark: str) -> bytes:
    record = b'{"vehicle_id": "%s", "manufacturer": "%s"}' % (mark.encode(), b"x" * 100_000)
    return ndjson([record] * (9 * MIB // len(record)))


def large_record(mark: str) -> bytes:
    return ndjson([*vehicles(mark), b'{"vehicle_id": "%s", "manufacturer": "%s"}' % (mark.encode(), b"x" * MIB)])


def bomb(mark: str) -> bytes:
    return gzip.compress(ndjson(vehicles(mark)) + b"\n" * (16 * MIB), 9)


REFUSED: dict[str, tuple[str, Callable[[str], bytes], dict[str, str], int, str, list[str], dict[str, Any]]] = {
    # source, body, headers, then: status, kind, words of the detail, members
    "broken JSON": (
        "vehicles",
        lambda mark: ndjson([*vehicles(mark, 2), vehicles(mark)[0][:-1]]),
        {},
        400,
        "malformed-json",
        ["Record 2", "JSON"],
        {"record": 2},
    ),
    "wrong type in record 3": (
        "vehicles",
        wrong_in_record_3,
        {},
        422,
        "schema-violation",
        ["Record 3", "seats", "int", "str"],
        {"record": 3, "field": "seats"},
    ),
    "missing field": (
        "vehicles",
        lambda mark: b'{"model": "%s"}' % mark.encode(),
        {},
        422,
        "schema-violation",
        ["Record 0", "vehicle_id"],
        {"record": 0, "field": "vehicle_id"},
    ),
    "unknown source": (
        "planes",
        lambda mark: vehicles(mark)[0],
        {},
        404,
        "unknown-source",
        ["planes", "vehicles", "status", "results", "failures"],
        {"sources": ["vehicles", "status", "results", "failures"]},
    ),
    "unknown media type": (
        "vehicles",
        lambda mark: vehicles(mark)[0],
        {"Content_Type": "text/csv"},
        415,
        "unsupported-media-type",
        ["text/csv", "application/x-ndjson", "application/json"],
        {},
    ),
    "unknown encoding": (
        "vehicles",
        lambda mark: vehicles(mark)[0],
        {"Content_Encoding": "br"},
        415,
        "unsupported-encoding",
        ["br", "gzip"],
        {},
    ),
    "truncated gzip": (
        "vehicles",
        lambda mark: gzip.compress(ndjson(vehicles(mark, 100)))[:-9],
        {"Content_Encoding": "gzip"},
        400,
        "corrupt-encoding",
        ["gzip", "ends before"],
        {},
    ),
    "not gzip at all": (
        "vehicles",
        lambda mark: ndjson(vehicles(mark)),
        {"Content_Encoding": "gzip"},
        400,
        "corrupt-encoding",
        ["gzip"],
        {},
    ),
    "zip bomb": (
        "vehicles",
        bomb,
        {"Content_Encoding": "gzip"},
        413,
        "body-too-costly",
        ["10000", "blank lines"],
        {"limit": 10_000, "setting": "BRONZE_BLANK_LINES_MAX"},
    ),
    "body over the limit": (
        "vehicles",
        too_many,
        {},
        413,
        "body-too-large",
        [str(8 * MIB), "several submissions"],
        {"limit": 8 * MIB},
    ),
    "JSON over its limit": (
        "vehicles",
        lambda mark: b"[" + b",".join(vehicles(mark, 20_000)) + b"]",
        {"Content_Type": "application/json"},
        413,
        "body-too-large",
        [str(MIB), "application/x-ndjson"],
        {"limit": MIB},
    ),
    "record over the limit": (
        "vehicles",
        large_record,
        {},
        413,
        "record-too-large",
        ["Record 1", "larger than"],
        {"record": 1},
    ),
    "empty body": ("vehicles", lambda mark: b"", {}, 400, "empty-body", ["no record"], {}),
    "nothing but blank lines": ("vehicles", lambda mark: b"\n \r\n\n", {}, 400, "empty-body", ["no record"], {}),
    "not UTF-8": (
        "vehicles",
        lambda mark: ndjson([*vehicles(mark), b'{"vehicle_id": "%s \xff"}' % mark.encode()]),
        {},
        400,
        "invalid-utf8",
        ["Record 1", "UTF-8"],
        {"record": 1},
    ),
    "endless key": (
        "vehicles",
        lambda mark: vehicles(mark)[0],
        {"Idempotency_Key": "k" * 256},
        400,
        "invalid-header",
        ["Idempotency-Key", "255"],
        {"header": "Idempotency-Key"},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_says_what_to_correct_and_stores_nothing(case: str, system: System, mark: str) -> None:
    """A submission with any error is refused as a whole. The problem document names the place and the remedy, and no
    record is in the lane or the bucket.
    """
    source, body, headers, status, kind, words, members = REFUSED[case]
    with nothing_is_kept(system, mark):
        answer = problem(system.post(source, body(mark), **headers), status, kind)
    assert [word for word in words if word not in answer["detail"]] == [], answer["detail"]
    assert {name: answer.get(name) for name in members} == members


def test_a_key_is_for_one_body(system: System, mark: str) -> None:
    """For a used key, the same body gets the same 202 again and another body gets a 409; neither stores anything."""
    key, body = str(uuid4()), vehicles(mark)[0]
    first = system.post("vehicles", body, Idempotency_Key=key)
    assert first.status_code == 202
    for _ in ("queued or stored", "stored"):
        retry = system.post("vehicles", body, Idempotency_Key=key)
        assert (retry.status_code, retry.json()) == (202, first.json())
        reused = problem(
            system.post("vehicles", vehicles(f"other-{mark}")[0], Idempotency_Key=key), 409, "idempotency-key-reused"
        )
        assert reused["submission_id"] == first.json()["submission_id"]
        assert "new key" in reused["detail"]
        system.stored(first.json()["submission_id"])
    system.fence()  # all earlier messages are in the bucket now
    assert system.payloads(mark) == [body]


def test_a_bomb_costs_little_memory(branch: System, mark: str) -> None:
    """Half a GiB in some MB of gzip is refused at the body's limit; the API never uses a quarter of that memory."""
    filler = b64encode(random.Random(1).randbytes(600)) + b"x" * 99_000
    record = b'{"vehicle_id": "%s", "manufacturer": "%s"}\n' % (mark.encode(), filler)
    deflate = zlib.compressobj(1, wbits=31)
    body = b"".join(deflate.compress(record) for _ in range(512 * MIB // len(record))) + deflate.flush()
    role = branch.role("api", BRONZE_BODY_BYTES_MAX=str(256 * MIB))
    with branch.queue(), branch.running(role) as processes:

        def peak_bytes() -> int:
            status = Path(f"/proc/{processes['api'].pid}/status").read_text()
            return 1024 * int(status.partition("VmHWM:")[2].split()[0])

        assert branch.post("vehicles", vehicles(mark)[0]).status_code == 202
        before = peak_bytes()
        problem(branch.post("vehicles", body, Content_Encoding="gzip"), 413, "body-too-large")
        assert peak_bytes() - before < 64 * MIB


def test_a_small_bomb_does_not_hold_up_others(branch: System, mark: str) -> None:
    """A body that is large only after decompression is checked outside of the event loop: other requests are served."""
    body = gzip.compress(ndjson(vehicles(mark, 80_000)) + b"no JSON", 9)
    with branch.queue(), branch.running(branch.role("api")):
        answers: list[int] = []

        def send() -> None:
            sent = (branch.post("vehicles", body, Content_Encoding="gzip") for _ in range(BOMBS))
            answers.extend(answer.status_code for answer in sent)

        bombing = threading.Thread(target=send)
        bombing.start()
        served = 0
        while bombing.is_alive():
            served += branch.get("/livez").status_code == 200
        bombing.join()
        assert answers == [400] * BOMBS
        assert served > 5 * BOMBS  # one or two of each if the event loop is blocked


# --- the queue is unavailable or full


def if_accepted(answer: httpx.Response) -> httpx.Response | None:
    return answer if answer.status_code == 202 else None


def test_a_full_queue_is_503_and_loses_nothing(branch: System, mark: str) -> None:
    """A full lane answers 503 with Retry-After and stores nothing of that submission. Accepted submissions are stored
    once, and the others are accepted under their keys as soon as the consumer has made room.
    """
    record = b'{"vehicle_id": "%s-%d", "manufacturer": "%s"}'
    noise = [
        b64encode(random.Random(number).randbytes(150_000)) for number in range(12)
    ]  # it does not become smaller by compression
    bodies = [record % (mark.encode(), number, filling) for number, filling in enumerate(noise)]
    env = {**IMPATIENT, "BRONZE_QUEUE_BYTES_MAX": str(MIB)}
    with branch.queue(), branch.running(branch.role("api", **env)):

        def send(number: int) -> httpx.Response:
            return branch.post("vehicles", bodies[number], Idempotency_Key=f"{mark}-{number}")

        full = next(number for number in range(len(bodies)) if not if_accepted(send(number)))
        assert full > 1
        refused = send(full)
        problem(refused, 503, "queue-full")
        assert int(refused.headers["retry-after"]) > 0
        with branch.running(branch.role("consumer", **env)):
            for number in range(full, len(bodies)):
                until(f"submission {number} is accepted", lambda number=number: if_accepted(send(number)))  # type: ignore[misc]
            for number in range(len(bodies)):
                branch.stored(send(number).json()["submission_id"])
            assert branch.payloads(mark) == sorted(bodies)


def test_an_unavailable_queue_is_503_and_loses_nothing(branch: System, mark: str) -> None:
    """After kill -9 of the queue a submission gets 503 with Retry-After, and `/readyz` names the queue. When the queue
    runs again, the same submission is accepted, and each submission is stored once.
    """
    bodies = vehicles(mark, 2)
    roles = (branch.role("api", **IMPATIENT), branch.role("consumer", **IMPATIENT))
    with branch.queue() as queue, branch.running(*roles):

        def send(number: int) -> httpx.Response:
            return branch.post("vehicles", bodies[number], Idempotency_Key=f"{mark}-{number}")

        first = send(0)
        assert first.status_code == 202
        queue.signal(signal.SIGKILL)
        refused = send(1)
        problem(refused, 503, "queue-away")
        assert int(refused.headers["retry-after"]) > 0
        ready = branch.get("/readyz")
        assert ready.status_code == 503
        assert "unavailable" in ready.json()["queue"]
        queue.restart()
        second = until("the submission is accepted", lambda: if_accepted(send(1)))
        for answer in (first, second):
            branch.stored(answer.json()["submission_id"])
        assert branch.payloads(mark) == sorted(bodies)


def test_a_queue_that_does_not_answer_is_503_and_doubles_nothing(branch: System, mark: str) -> None:
    """While the queue is frozen, a submission gets 503 with Retry-After, which says whether its outcome is known. If it
    is unknown, the submission is stored once or not at all, as its status says. A retry under its key is stored once.
    """
    keyed, unkeyed = vehicles(mark, 2)
    roles = (branch.role("api", **IMPATIENT), branch.role("consumer", **IMPATIENT))
    with branch.queue() as queue, branch.running(*roles):
        queue.signal(signal.SIGSTOP)
        try:
            unknown = branch.post("vehicles", unkeyed)
            refused = branch.post("vehicles", keyed, Idempotency_Key=mark)
        finally:
            queue.signal(signal.SIGCONT)
        document = problem(unknown, 503, "outcome-unknown")
        assert document["submission_id"] in document["detail"]
        for answer in (unknown, refused):
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
        retry = until(
            "the submission is accepted", lambda: if_accepted(branch.post("vehicles", keyed, Idempotency_Key=mark))
        )
        branch.stored(retry.json()["submission_id"])
        branch.fence()  # all messages on the way are in the bucket now
        status = branch.get(f"/v1/submissions/{document['submission_id']}").status_code
        assert status in {200, 404}
        assert branch.payloads(mark) == sorted([keyed, unkeyed] if status == 200 else [keyed])


def test_json_is_accepted_as_object_and_as_array(system: System, mark: str) -> None:
    """`application/json` is one record or an array of them; each record's own bytes are its payload."""
    first, *many = vehicles(mark, 3)
    for body in (first, b" [\n" + b" ,\n ".join(many) + b" ]\n"):
        assert json.loads(body)
        answer = system.post("vehicles", body, Content_Type="application/json; charset=utf-8")
        assert answer.status_code == 202, answer.text
        system.stored(answer.json()["submission_id"])
    assert system.payloads(mark) == sorted([first, *many])
