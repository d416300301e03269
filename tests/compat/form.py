"""The form of stored data, as lines of text: values that differ each time are replaced by names.

These are ids without a key, times, trace ids, epochs, and values derived from them. Everything else is shown as stored,
including the order of fields.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tests.compat import state

#: Longer texts are shown by their digest.
SHOWN_CHARS_MAX = 4_000

_TIME = r"20[2-9]\d-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?"
_VOLATILE = (
    (re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-\d\d"), "TRACEPARENT"),
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"), "UUID7"),
    (re.compile(_TIME), "TIME"),
    (re.compile(r"date=20[2-9]\d-\d\d-\d\d/hour=\d\d"), "date=DATE/hour=HOUR"),
    (re.compile(r"20[2-9]\d{5}T\d{9}"), "EPOCH"),
    (re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])"), "ID"),
    (re.compile(r'"(owner|seconds)": ?("[^"]*"|[\d.]+)'), r'"\1":NEW'),
    (re.compile(r'"(beat|bytes)": ?\d+'), r'"\1":N'),
    # from a consumer that is killed at any moment
    (re.compile(r'"phase":"\w+","attempt":\{"first":\d+,"size":\d+,"deaths":0,"limit":0,"until":\d+\}'), "ATTEMPT"),
    (re.compile(r"bronze \d+\.\d+\.\d+\w*"), "bronze VERSION"),
)


def form(written: Mapping[str, Any], as_changed: Callable[[str], str] = str) -> list[str]:
    """The form of all that a system wrote: its streams, its bucket, and its answers.

    `as_changed` replaces texts that were changed intentionally, before long lines become digests.
    """
    queue, bucket, answers = written["queue"], written["bucket"], written["answers"]
    made = {json.loads(answers["said"]["watched"])["submission_id"]: "OF A PATH"}
    for key, one in bucket.items():
        if key.endswith(".replayed"):
            made[json.loads(state.as_bytes(one))["submission_id"]] = "OF A KEY"
    return [_still(as_changed(line), made) for line in (*_queue(queue), *_bucket(bucket, queue), *_answers(answers))]


def _still(line: str, made: Mapping[str, str]) -> str:
    for one, name in made.items():
        line = line.replace(one, name)
    for pattern, name in _VOLATILE:
        line = pattern.sub(name, line)
    digest = hashlib.sha256(line.encode()).hexdigest()
    return line if len(line) <= SHOWN_CHARS_MAX else f"{line[:200]} ... {len(line)} characters, {digest}"


# --- the queue


def _queue(streams: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for stream in streams:
        config = stream["config"]
        metadata = {name: value for name, value in config["metadata"].items() if not name.startswith("_nats.")}
        yield f"stream {config['name']} {json.dumps({**config, 'metadata': metadata})}"
        ordered = config["name"].startswith("BRONZE_") and "_CATALOG_" not in config["name"]
        for message in stream["messages"] if ordered else sorted(stream["messages"], key=_side):
            number = message["sequence"] if ordered else "-"
            yield f"message {number} {message['subject']}"
            for name, value in message["headers"]:
                yield f"  {name}: {value if ordered or not value.isdecimal() or value == '0' else 'N'}"
            yield from (f"  {line}" for line in _content(dict(message["headers"]), state.as_bytes(message["payload"])))


def _side(message: Mapping[str, Any]) -> str:
    """The part of a subject within which the order is fixed: a claim's key, or a lane in the catalog."""
    kind, _, rest = str(message["subject"]).partition(".")
    if kind == "identity":
        return str(json.loads(state.as_bytes(message["payload"]))["accepted"]["source"])
    return rest.partition(".")[0] if kind == "catalog" else rest


def _content(headers: Mapping[str, str], payload: bytes) -> Iterator[str]:
    content = zstandard.decompress(payload) if headers.get("Bronze-Encoding") == "zstd" else payload
    if headers.get("Bronze-Kind") != "columnar":
        yield content.decode()
        return
    with pa.ipc.open_stream(content) as stream:
        yield from _columns(stream.schema)
        yield from _rows(stream.read_all())


def _columns(schema: pa.Schema) -> Iterator[str]:
    yield from (f"column {field.name} {field.type} {'' if field.nullable else 'not null'}" for field in schema)
    yield f"metadata {sorted(schema.metadata or {})}"


def _rows(table: pa.Table) -> Iterator[str]:
    yield from (json.dumps(row, default=str, ensure_ascii=False) for row in table.to_pylist())


# --- the bucket


def _bucket(objects: Mapping[str, Mapping[str, Any]], queue: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for key, one in objects.items():
        body, metadata = state.as_bytes(one), dict(one["metadata"])
        metadata["sha256"] = "of its bytes" if metadata.get("sha256") == hashlib.sha256(body).hexdigest() else "WRONG"
        if not key.endswith(".parquet"):
            yield f"object {key} {one['content_type']} {json.dumps(metadata)}"
            yield body.decode()
            continue
        file = pq.ParquetFile(BytesIO(body))
        contents = json.loads(file.metadata.metadata[b"bronze"])
        digest = _digest(queue, contents)
        for where, name in ((metadata, "bronze-digest"), (contents, "digest")):
            where[name] = "of its messages" if where[name] == digest else "WRONG"
        yield f"object {key} {one['content_type']} {json.dumps(metadata)}"
        yield from _columns(file.schema_arrow)
        yield f"footer {sorted(file.metadata.metadata)} {json.dumps(contents, ensure_ascii=False)}"
        for group in range(file.metadata.num_row_groups):
            yield from _row_group(file.metadata.row_group(group))
        yield from _rows(file.read())


def _digest(queue: Sequence[Mapping[str, Any]], contents: Mapping[str, Any]) -> str:
    """The digest of the messages in an object's range."""
    name = f"BRONZE_{contents['source'].upper()}_{contents['lane']}_{contents['epoch']}"
    messages = next(stream["messages"] for stream in queue if stream["config"]["name"] == name)
    told = "".join(
        f"{one['sequence']} {one['subject']} {one['time']}\n"
        for one in messages
        if contents["first"] <= one["sequence"] <= contents["last"]
    )
    return hashlib.sha256(told.encode()).hexdigest()


def _row_group(group: Any) -> Iterator[str]:
    for number in range(group.num_columns):
        column = group.column(number)
        has = (
            f"dictionary {column.has_dictionary_page} statistics {column.is_stats_set} index {column.has_column_index}"
        )
        yield f"{group.num_rows} rows {column.path_in_schema} {column.physical_type} {column.compression} {has}"


# --- the answers


def _answers(answers: Mapping[str, Any]) -> Iterator[str]:
    yield f"a publisher says {sorted(json.loads(answers['said']['published']))}"
    for name in ("accepted", "submissions", "objects", "lineage", "sources", "quarantine"):
        yield from (f"{name} {json.dumps(one, ensure_ascii=False)}" for one in _undigested(answers[name]))
    yield from (f"export {key} {text!r}" for key, text in answers["exports"].items())


def _undigested(answers: Sequence[Any]) -> Iterator[Any]:
    """Answers without the digests of objects, which are compared in the bucket."""
    for one in answers:
        yield {**one, "sha256": "SHA256"} if isinstance(one, dict) and "sha256" in one else one
