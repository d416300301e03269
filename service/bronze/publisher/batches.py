"""Batches: the records of one file that become one submission."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from bronze.errors import Refusal, Refused
from bronze.publisher.files import OpenFile
from bronze.publisher.formats import (
    COLUMNAR_AS_A_WHOLE,
    FileFormat,
    Record,
    SourceGetter,
    display_name,
    required_format,
    unreadable,
)
from bronze.publisher.plan import BATCH_BYTES, BATCH_RECORDS, COLUMNAR_BATCH_BYTES, COLUMNAR_BATCH_RECORDS, Plan
from bronze.publisher.reading import columnar_bodies, records
from bronze.records.media import NDJSON, ColumnarType


@dataclass(frozen=True, slots=True)
class Batch:
    """The content of one submission: records of one file, as lines of JSON or as an Arrow stream.

    `numbers` are the positions of the records in the file, from 1, in units of `unit` (line or record). `bytes_read` is
    the number of bytes of the file that were read for this batch.
    """

    file: str
    body: bytes
    numbers: Sequence[int]
    bytes_read: int
    unit: str = "line"
    media_type: str = NDJSON

    @property
    def records(self) -> int:
        return len(self.numbers)

    def place(self, record: int | None = None) -> str:
        """The position in the file of one record of the batch (by its index in the batch), or of all its records."""
        if record is not None and 0 <= record < len(self.numbers):
            return f"{display_name(self.file)}, {self.unit} {self.numbers[record]}"
        return f"{display_name(self.file)}, {self.unit}s {self.numbers[0]} to {self.numbers[-1]}"


def batches_of(file: OpenFile, plan: Plan, source: SourceGetter) -> Iterator[Batch]:
    """A file's records in batches, according to a plan.

    Raises `Misconfigured` if the file's format is unknown, and `Refused` if the file cannot be read.
    """
    form = required_format(file.path, plan.format)
    if not form.is_text:
        return _columnar_batches(file, form, plan)
    numbered = records(file.path, file.stream, form, source, plan.classification_column, plan.csv)
    return batches(
        file.path,
        numbered,
        records_max=plan.records_max or BATCH_RECORDS,
        bytes_max=plan.bytes_max or BATCH_BYTES,
        unit=form.unit,
        position=file.position,
    )


def _columnar_batches(file: OpenFile, form: FileFormat, plan: Plan) -> Iterator[Batch]:
    if plan.on_invalid == "quarantine":
        raise unreadable(file.path, Refusal.UNSUPPORTED_MEDIA_TYPE, COLUMNAR_AS_A_WHOLE)
    first, position = 1, 0
    for count, body in columnar_bodies(
        file.path,
        file.stream,
        form,
        records_max=plan.records_max or COLUMNAR_BATCH_RECORDS,
        bytes_max=plan.bytes_max or COLUMNAR_BATCH_BYTES,
        classification_column=plan.classification_column,
    ):
        bytes_read = file.position() - position
        numbers = range(first, first + count)
        yield Batch(file.path, body, numbers, bytes_read, form.unit, ColumnarType.ARROW_STREAM)
        first += count
        position += bytes_read


def batches(
    file: str,
    records: Iterable[Record],
    *,
    records_max: int,
    bytes_max: int,
    unit: str = "line",
    position: Callable[[], int] = lambda: 0,
) -> Iterator[Batch]:
    """The records of a file in batches, in order; holds one batch in memory.

    A record that is larger than `bytes_max` becomes a batch of its own. `position` returns how many bytes of the file
    were read so far. If `records` raises `Refused`, the records before the error are yielded first.
    """
    body: list[bytes] = []
    numbers: list[int] = []
    size = position_before = 0

    def finish() -> Batch:
        nonlocal size, position_before
        position_now = position()
        batch = Batch(file, b"".join(body), tuple(numbers), position_now - position_before, unit)
        position_before = position_now
        body.clear()
        numbers.clear()
        size = 0
        return batch

    try:
        for number, record in records:
            if body and size + len(record) > bytes_max:
                yield finish()
            body.append(record)
            numbers.append(number)
            size += len(record)
            if len(body) == records_max:
                yield finish()
    except Refused:
        if body:
            yield finish()
        raise
    if body:
        yield finish()
