"""Batches: records of one file that become one submission."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from bronze.errors import Refused
from bronze.publisher.files import OpenFile
from bronze.publisher.formats import Record, SourceGetter, display_name, required_format
from bronze.publisher.plan import Plan
from bronze.publisher.reading import classified, records


@dataclass(frozen=True, slots=True)
class Batch:
    """What becomes one submission: records of one file, a line of JSON each.

    `numbers` are those of the records in the file, from 1, counted in `unit`, a line or a record; `bytes_read` is what
    of the file was read for it.
    """

    file: str
    body: bytes
    numbers: Sequence[int]
    bytes_read: int
    unit: str = "line"

    @property
    def records(self) -> int:
        return len(self.numbers)

    def place(self, record: int | None = None) -> str:
        """Where one of the batch's records stands, or all of them."""
        if record is not None and 0 <= record < len(self.numbers):
            return f"{display_name(self.file)}, {self.unit} {self.numbers[record]}"
        return f"{display_name(self.file)}, {self.unit}s {self.numbers[0]} to {self.numbers[-1]}"


def batches_of(file: OpenFile, plan: Plan, source: SourceGetter) -> Iterator[Batch]:
    """A file's records in batches, by a plan. Raises `Misconfigured` where nothing tells its format, and `Refused`."""
    form = required_format(file.path, plan.format)
    read = records(file.path, file.stream, form, source)
    if column := plan.classification_column:
        read = ((number, classified(record, column)) for number, record in read)
    return batches(
        file.path,
        read,
        records_max=plan.records_max,
        bytes_max=plan.bytes_max,
        unit=form.unit,
        position=file.position,
    )


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

    A larger record than `bytes_max` makes a batch of its own. `position` is how many bytes were read by now. What the
    records raise, it raises once what stands before it was given out.
    """
    body: list[bytes] = []
    numbers: list[int] = []
    size = read = 0

    def cut() -> Batch:
        nonlocal size, read
        before, read = read, position()
        batch = Batch(file, b"".join(body), tuple(numbers), read - before, unit)
        body.clear()
        numbers.clear()
        size = 0
        return batch

    try:
        for number, record in records:
            if body and size + len(record) > bytes_max:
                yield cut()
            body.append(record)
            numbers.append(number)
            size += len(record)
            if len(body) == records_max:
                yield cut()
    except Refused:
        if body:
            yield cut()
        raise
    if body:
        yield cut()
