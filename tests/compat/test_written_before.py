"""The current version continues with the data of the recorded version, as after an upgrade."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from io import BytesIO
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from tests.compat import state
from tests.compat.changed import as_changed, without_added
from tests.compat.conftest import Written
from tests.compat.record import without_lag
from tests.compat.scenario import (
    HALF,
    LEGACY,
    LEGACY_ID,
    MENDED,
    PUBLISH,
    PUBLISHED,
    STORED,
    WAITING,
    WATCHED,
    Sending,
)
from tests.compat.site import Api, Site, until

SENT = (*(one for group in STORED for one in group), HALF, *WAITING)
KEPT_S = {"720h": 720 * 3600, "24h": 24 * 3600}


@contextmanager
def serving(site: Site) -> Iterator[Api]:
    """An API that continues with the recorded catalog index."""
    program = site.role("api", "serve", BRONZE_VIEW_DIR=str(site.root / "view"))
    (view,) = (site.root / "view").glob("view-*.sqlite")
    view.rename(view.with_name(f"view-{program.ports['http']}.sqlite"))
    with site.started(program) as process:
        yield Api.of(process)


@contextmanager
def consuming(site: Site) -> Iterator[None]:
    with site.started(site.role("consumer", "consume")) as process:
        yield
        assert process.alive()
    assert process.wait(0) == 0


def drain(site: Site) -> None:
    with consuming(site):
        until("what waited is stored", lambda: state.drained(site.nats_port))


def check_retries(api: Api, written: Written) -> None:
    for sending, accepted in zip(SENT, written["answers"]["accepted"], strict=True):
        if sending.key:
            answer = sending.send(api)
            assert (answer.status_code, answer.json()) == (httpx.codes.ACCEPTED, accepted)


def stored(site: Site) -> tuple[list[str], Counter[str]]:
    """The payloads of all rows with a payload, and the number of rows without, by submission."""
    payloads: list[str] = []
    others: Counter[str] = Counter()
    for key, one in state.read_bucket(site.s3, site.account.bucket).items():
        if key.endswith(".parquet"):
            for row in pq.read_table(BytesIO(state.as_bytes(one)), partitioning=None).to_pylist():
                if "measured_at" in row and json.loads(row["_payload"] or "{}").keys() <= {"undeclared"}:
                    others[row["_submission_id"]] += 1
                else:
                    payloads.append(row["_payload"])
    return payloads, others


def of_before(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without the members that were added since."""
    before: dict[str, Any] = json.loads(without_added(json.dumps(answer)))
    return before


def comparable(lineage: dict[str, Any]) -> dict[str, Any]:
    """A lineage without the members that were added since, and without those that change with time."""
    return without_lag(of_before(lineage))


def test_what_is_stored_gets_the_same_answers(site: Site, written: Written) -> None:
    """Status, objects, look-ups and declarations are the same as the recorded version's answers, from its data."""
    before = written["answers"]
    with serving(site) as api:
        for accepted, status in zip(before["accepted"], before["submissions"], strict=True):
            assert of_before(api.get(accepted["status_url"])) == status
        for contents in before["objects"]:
            assert of_before(api.get(f"/v1/objects/{contents['file_path']}")) == contents
        for name, value, chain in before["lineage"]:
            assert comparable(api.get("/v1/lineage", **{name: value})) == chain
            told = json.loads(
                site.run("lineage", f"--{name.replace('_', '-')}", value, "--json", BRONZE_API_URL=api.url)
            )
            assert comparable(told) == chain
        listed, *schemas = before["sources"]
        assert api.get("/v1/sources") == listed
        expected = json.loads(as_changed(json.dumps(schemas)))
        found = [of_before(api.get(f"/v1/sources/{source}/schema")) for source in ("readings", "events")]
        assert found == expected


def test_a_retry_gets_the_202_of_before(site: Site, written: Written) -> None:
    """For stored, half stored and waiting submissions, the same body under the same key is the same submission, and
    another body is refused.
    """
    waiting = state.lanes(site.nats_port)
    with serving(site) as api:
        check_retries(api, written)
        for sending in SENT:
            if sending.key:
                other = Sending(sending.source, b'{"name": "o"}', headers=sending.headers)
                if sending.source == "readings":
                    other = Sending("readings", LEGACY[0].encode(), headers=sending.headers)
                assert other.send(api).status_code == httpx.codes.CONFLICT
    assert waiting.items() <= state.lanes(site.nats_port).items()  # and the canary's, which was added since


def test_what_waits_is_stored_once(site: Site, written: Written) -> None:
    """Messages of each kind and format, a partly stored submission, and a late copy: each record is in one object, and
    each dead letter is in quarantine. Existing objects are unchanged, and stored messages are purged.
    """
    with serving(site) as api, consuming(site):
        until("what waited is stored", lambda: state.drained(site.nats_port))
        until("what is stored is purged", lambda: all(one[0] == one[2] for one in state.lanes(site.nats_port).values()))
        for sending, accepted in zip(SENT, written["answers"]["accepted"], strict=True):
            status = api.get(accepted["status_url"])
            assert status["status"] == ("quarantined" if sending.quarantine else "stored")
        assert api.get(f"/v1/submissions/{LEGACY_ID}")["status"] == "stored"
        check_retries(api, written)
    payloads, others = stored(site)
    expected = [record for sending in SENT for record in sending.payloads]
    expected += [*LEGACY, MENDED.strip(), *PUBLISHED.decode().splitlines(), *WATCHED[1].splitlines()]
    assert sorted(payloads) == sorted(expected)
    ids = [accepted["submission_id"] for accepted in written["answers"]["accepted"]]
    assert others == {one: sending.rows for one, sending in zip(ids, SENT, strict=True) if sending.rows}
    now = state.read_bucket(site.s3, site.account.bucket)
    assert {key: now.get(key) for key in written["bucket"]} == written["bucket"]
    new = [key.rpartition("-")[2] for key in now.keys() - written["bucket"].keys() if key.startswith("quarantine/")]
    assert sorted(new) == [
        "000000000006.message",
        "000000000029.rejected",
        "000000000034.message",
    ]


def entries(queue: list[dict[str, Any]]) -> Mapping[str, list[bytes]]:
    """The catalog's entries by lane, byte for byte."""
    found: dict[str, list[bytes]] = {}
    for message in _catalog(queue):
        if message["subject"].startswith("catalog."):
            found.setdefault(message["subject"], []).append(state.as_bytes(message["payload"]))
    return found


def identities(queue: list[dict[str, Any]]) -> Mapping[str, tuple[bytes, str]]:
    """The last identity of each submission, byte for byte, with its time to live."""
    return {
        message["subject"]: (state.as_bytes(message["payload"]), dict(message["headers"])["Nats-TTL"])
        for message in _catalog(queue)
        if message["subject"].startswith("identity.")
    }


def _catalog(queue: list[dict[str, Any]]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = next(one["messages"] for one in queue if "catalog.>" in one["config"]["subjects"])
    return messages


def test_the_catalog_is_rebuilt_unchanged(site: Site, written: Written) -> None:
    """From the footers of the recorded version, the same entries and identities are rebuilt, and consumers continue
    after them.
    """

    def rebuilt() -> Mapping[str, list[bytes]]:
        return {
            subject: [without_added(entry.decode()).encode() for entry in of_lane]
            for subject, of_lane in entries(state.read_queue(site.nats_port)).items()
        }

    dry = site.run("catalog", "rebuild", "--dry-run")
    assert entries(state.read_queue(site.nats_port)) == entries(written["queue"]), dry
    said = site.run("catalog", "rebuild", "--yes")
    assert "will halt" not in said
    queue = state.read_queue(site.nats_port)
    assert rebuilt() == entries(written["queue"])
    for of_lane in entries(queue).values():
        records = 0
        for number, entry in enumerate(map(json.loads, of_lane), 1):
            records += entry["records"]
            assert (entry["totals"]["objects"], entry["totals"]["records"]) == (number, records)
    assert identities(queue) == _alive(written)
    drain(site)


def _alive(written: Written) -> Mapping[str, tuple[bytes, str]]:
    """The identities that have not expired: their time to live counts from the last message of the object."""
    of_path = {
        entry["file_path"]: datetime.fromisoformat(entry["last_time"][:19] + "+00:00").timestamp()
        for of_lane in entries(written["queue"]).values()
        for entry in map(json.loads, of_lane)
    }
    return {
        subject: (identity, ttl)
        for subject, (identity, ttl) in identities(written["queue"]).items()
        if time.time() - of_path[json.loads(identity)["objects"][-1]] < KEPT_S[ttl]
    }


def test_quarantine_is_listed_exported_and_replayed(site: Site, written: Written) -> None:
    """Reasons, places and bytes are as the recorded version stored them. Records that it replayed are not sent again;
    the others are replayed once.
    """
    before = written["answers"]
    assert [json.loads(line) for line in site.run("quarantine", "list", "--json").splitlines()] == before["quarantine"]
    for key, text in before["exports"].items():
        assert site.run("quarantine", "export", key) == text
    replayed = next(one for one in before["quarantine"] if one["replayed_as"])
    (many_bad,) = (one["key"] for one in before["quarantine"] if len(one["records"]) == 40)
    late = next(one["key"] for one in before["quarantine"] if one["reason"].startswith("a late submission"))
    mended = site.root / "mended.ndjson"
    with serving(site) as api:

        def replay(key: str, lines: str) -> str:
            mended.write_text(lines)
            return site.run("quarantine", "replay", "--yes", key, "--file", str(mended), BRONZE_API_URL=api.url)

        waiting = state.lanes(site.nats_port)
        assert replayed["replayed_as"] in replay(replayed["key"], MENDED)
        with pytest.raises(AssertionError, match="other records"):
            replay(replayed["key"], LEGACY[0] + "\n\n")
        assert state.lanes(site.nats_port) == waiting
        records = [LEGACY[0].replace("legacy", f"mended-{number}") for number in range(40)]
        for _ in range(2):
            replay(many_bad, "".join(f"{record}\n" for record in records))
            site.run("quarantine", "replay", "--yes", late, BRONZE_API_URL=api.url)
    drain(site)
    payloads, _ = stored(site)
    assert Counter(payloads) & Counter(records) == Counter(records)
    assert len([one for one in payloads if "first-1" in one]) == 2


def test_publishers_send_nothing_twice(site: Site, written: Written) -> None:
    """The keys of a publisher, and the state of a publisher that watches a directory, are still valid."""
    name, _, written_s = WATCHED
    watched, report = site.root / "watched", site.root / "report.ndjson"
    assert int((watched / name).stat().st_mtime) == written_s
    with serving(site) as api:
        waiting = state.lanes(site.nats_port)
        said = json.loads(site.run(*PUBLISH, given=PUBLISHED, BRONZE_API_URL=api.url))
        assert (said["records"], said["records_again"]) == (2, 2)
        assert state.lanes(site.nats_port) == waiting
        (watched / "new.ndjson").write_text('{"name": "new"}\n')
        words = ("publish", "events", "--watch", str(watched), "--settle", "0", "--report", str(report))
        with site.started(site.publisher(*words, BRONZE_API_URL=api.url)):
            until("the new file is sent", lambda: report.exists() and report.read_text())
    assert [json.loads(line)["file"] for line in report.read_text().splitlines()] == [str(watched / "new.ndjson")]
