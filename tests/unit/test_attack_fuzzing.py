"""The comparison at the end of `make attack FUZZ=...`: it finds each difference between answers and bucket."""

import io
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bronze.protocol import rejected_records
from tests.attack import mutations
from tests.attack.fuzzing import Accepted, Contents, digest

RECORDS = [b'{"id":"a"}', b'{"id":7}', b'{"id":"c"}']
SENT = Accepted(records=2, rejected=1, sent=b"".join(map(digest, RECORDS)))


def rows(*found: tuple[int, bytes], submission: str = "s", origin: str | None = None) -> bytes:
    table = pa.table(
        {
            "_submission_id": [submission] * len(found),
            "_record_index": [index for index, _ in found],
            "_payload": [payload.decode() for _, payload in found],
            "_origin": pa.array([origin] * len(found), pa.string()),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def quarantined(record: bytes) -> bytes:
    note = rejected_records.encode_note(1, "schema-violation", "-", None, record)
    return b'{"submission_id":"s"}\n' + rejected_records.pack([note], [record])


@pytest.fixture
def contents() -> Contents:
    contents = Contents()
    contents.add_object(rows((0, RECORDS[0]), (2, RECORDS[2])))
    contents.add_quarantined(quarantined(RECORDS[1]))
    return contents


def test_what_is_stored_as_it_was_sent_is_right(contents: Contents) -> None:
    contents.add_object(rows((0, b"{}"), submission="csv", origin="/tmp/fuzz-1.csv"))
    found = contents.compare({"s": SENT}, {"fuzz-1.csv": 1})
    assert (found.wrong, found.rows, found.rejected, found.objects) == ([], 3, 1, 2)


def test_a_lost_record_is_found() -> None:
    contents = Contents()
    contents.add_object(rows((0, RECORDS[0])))
    contents.add_quarantined(quarantined(RECORDS[1]))
    assert "1 rows and 1 in quarantine, accepted 2 and 1" in contents.compare({"s": SENT}, {}).wrong[0]


def test_another_record_is_found(contents: Contents) -> None:
    other = replace(SENT, sent=b"".join(map(digest, [RECORDS[0], RECORDS[1], b"{}"])))
    assert contents.compare({"s": other}, {}).wrong == ["s: other records than were sent"]


def test_a_record_that_is_stored_twice_is_found(contents: Contents) -> None:
    contents.add_object(rows((2, RECORDS[2])))
    assert contents.compare({"s": SENT}, {}).wrong == ["s: record 2 is stored twice"]


def test_what_nobody_sent_is_found(contents: Contents) -> None:
    assert contents.compare({}, {}).wrong == ["s: stored, but nobody got a 202"]


def test_a_file_with_other_rows_than_accepted_is_found(contents: Contents) -> None:
    assert contents.compare({"s": SENT}, {"fuzz-2.csv": 3}).wrong == ["fuzz-2.csv: 0 rows, accepted 3"]


def test_a_seed_repeats_its_requests() -> None:
    first, again = ([mutations.request(1, number, "h").pieces for number in range(60)] for _ in range(2))
    assert first == again
    assert first != [mutations.request(2, number, "h").pieces for number in range(60)]
