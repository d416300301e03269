"""Writes the rows of a source to a file, or shows them. The catalog says which objects to read."""

import argparse
import csv
import io
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bronze.admin.progress import Progress
from bronze.admin.read_command import FORMATS, TABLE_ROWS
from bronze.client import Client
from bronze.client.calls import check_range
from bronze.client.objects import Bucket, EventRange, chosen, within
from bronze.errors import Misconfigured, Refused
from bronze.plurals import counted
from bronze.printable import printable

SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".arrow": "arrow", ".arrows": "arrow"}
#: Characters of a line if standard output is no terminal.
WIDTH = 200
#: Objects whose rows are read as one dataset.
OBJECTS = 64


def run(args: argparse.Namespace) -> int:
    """Read, and write. Returns the exit code. Raises `Unavailable` and `Misconfigured`."""
    form = _form(args)
    if args.limit is not None and args.limit < 0:
        raise Misconfigured(f"--limit {args.limit} is negative")
    limit = TABLE_ROWS if args.limit is None and form == "table" else args.limit
    columns = args.columns.split(",") if args.columns else None
    try:
        with Client(args.url) as bronze, Progress("objects") as progress:
            check_range(args.since, args.until, "--since", "--until")
            check_range(args.event_since, args.event_until, "--event-since", "--event-until")
            events = _event_range(bronze, args)
            found = bronze.objects(args.source, since=args.since, until=args.until)
            paths = [event.file_path for event in found if events is None or events.may_be_in(event)]
            bucket = Bucket.of_settings()
            schema = bucket.schema(paths) if paths else bronze.columns(args.source)
            shown = chosen(schema, columns)
            condition = within(args.where, args.since, args.until, schema, events)
            rows = 0

            def batches() -> Iterator[pa.RecordBatch]:
                nonlocal rows
                for begin in range(0, len(paths), OBJECTS):
                    progress.left(len(paths) - begin)
                    for batch in bucket.batches(paths[begin : begin + OBJECTS], schema, columns, condition):
                        part = batch if limit is None else batch.slice(0, limit - rows)
                        rows += part.num_rows
                        yield part
                        if rows == limit:
                            return

            with _target(args.output) as target:
                _WRITERS[form](target, shown, batches())
    except Refused as error:
        print(f"bronze read: {printable(error.detail)}", file=sys.stderr)
        return 2
    where = f" to {args.output}" if args.output else ""
    more = ", and there may be more (--limit)" if rows == limit else ""
    objects = counted(len(paths), "object")
    print(f"bronze read: {counted(rows, 'row')}{where}, from {objects}{more}", file=sys.stderr)
    return 0


def _event_range(bronze: Client, args: argparse.Namespace) -> EventRange | None:
    if args.event_since is None and args.event_until is None:
        return None
    return EventRange.of(args.source, bronze.event_time(args.source), args.event_since, args.event_until)


def _form(args: argparse.Namespace) -> str:
    form: str = args.format or (SUFFIXES.get(args.output.suffix, "") if args.output else "table")
    if not form:
        raise Misconfigured(f"--output {args.output}: its name says no format; add --format {' | '.join(FORMATS)}")
    if form in {"parquet", "arrow"} and args.output is None and sys.stdout.isatty():
        raise Misconfigured(f"--format {form} is not for a terminal: add --output FILE, or redirect standard output")
    return form


@contextmanager
def _target(path: Path | None) -> Iterator[IO[bytes]]:
    """Standard output; or a file that replaces the one of its name only when it is complete."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    new = path.with_name(f".{path.name}.new")
    try:
        with new.open("wb") as file:
            yield file
        new.replace(path)
    except OSError as error:
        raise Misconfigured(f"--output {path}: {error.strerror or error}") from error
    finally:
        new.unlink(missing_ok=True)


def _write_parquet(target: IO[bytes], schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)


def _write_arrow(target: IO[bytes], schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    with pa.ipc.new_stream(target, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _write_csv(target: IO[bytes], schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """One line per row. On a terminal, texts with control characters are shown and not obeyed."""
    terminal = target.isatty()
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")

    def flush() -> None:
        target.write(text.getvalue().encode())
        text.seek(0)
        text.truncate()

    writer.writerow(schema.names)
    for batch in batches:
        flush()
        for row in _rows(batch):
            writer.writerow([printable(cell) if terminal else cell for cell in map(_cell, row)])
    flush()


def _write_table(target: IO[bytes], schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    table = Table(show_edge=False)
    for name in schema.names:
        table.add_column(Text(printable(name)))
    for batch in batches:
        for row in _rows(batch):
            table.add_row(*(Text(printable(_cell(value))) for value in row))
    shown = io.StringIO()
    Console(file=shown, width=shutil.get_terminal_size((WIDTH, 0)).columns).print(table)
    target.write(shown.getvalue().encode())


_WRITERS = {"parquet": _write_parquet, "arrow": _write_arrow, "csv": _write_csv, "table": _write_table}


def _rows(batch: pa.RecordBatch) -> Iterator[Sequence[Any]]:
    return zip(*(column.to_pylist() for column in batch.columns), strict=True) if batch.num_columns else iter(())


def _cell(value: Any) -> str:
    """A value as text; lists, structs and bytes as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | dict | bytes):
        return msgspec.json.encode(value, enc_hook=str).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
