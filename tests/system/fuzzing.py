"""Bodies that Schemathesis cannot generate: valid, nearly valid and invalid records, damaged files, random bytes."""

import json
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import schemathesis
from hypothesis import strategies as st

_VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["2013-01-01T00:00:00Z"])
)
_FIELDS = ["vehicle_id", "seats", "operator", "run_number", "scheduled_at", "arrived_at", "reason", "classification_id"]
_RECORDS = st.dictionaries(st.sampled_from(_FIELDS) | st.text(), _VALUES, max_size=6).map(json.dumps).map(str.encode)
_COLUMNS = st.sampled_from(
    [
        pa.array(["a", None, "c"]),
        pa.array([1, None, 2**62]),
        pa.array([0.5, float("nan"), 1e300]),
        pa.array([None, None, None]),
        pa.array([[1], [], None]),
        pa.array(["a", "b", "a"]).dictionary_encode(),
        pa.array([0, 1, 2], pa.timestamp("us", "UTC")),
    ]
)
_TABLES = st.dictionaries(st.sampled_from(_FIELDS), _COLUMNS, min_size=1, max_size=4).map(pa.table)


def _stream(table: pa.Table) -> bytes:
    sink = BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _parquet(table: pa.Table) -> bytes:
    sink = BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _damaged(body: bytes, at: int, byte: int) -> bytes:
    position = at % len(body)
    return body[:position] + bytes([byte]) + body[position + 1 :]


def _files(valid: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return valid | st.builds(_damaged, valid, st.integers(0, 2**16), st.integers(0, 255)) | st.binary(max_size=40)


schemathesis.openapi.media_type(
    "application/x-ndjson", st.lists(_RECORDS | st.binary(max_size=40), max_size=8).map(b"\n".join)
)
schemathesis.openapi.media_type("application/vnd.apache.arrow.stream", _files(_TABLES.map(_stream)))
schemathesis.openapi.media_type("application/vnd.apache.parquet", _files(_TABLES.map(_parquet)))


@schemathesis.hook
def map_query(_: schemathesis.HookContext, query: dict[str, object] | None) -> dict[str, object] | None:
    """Requests of the feed wait for as long as they say: not for minutes in all."""
    wait = (query or {}).get("wait")
    return {**query, "wait": min(wait, 0.1)} if query and isinstance(wait, int | float) else query
