"""Checking: finds the records that the API would refuse, without sending anything."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import NamedTuple

from bronze.errors import Refused
from bronze.plurals import counted
from bronze.publisher.batches import Batch, batches_of
from bronze.publisher.files import open_file
from bronze.publisher.formats import display_name
from bronze.publisher.plan import Plan
from bronze.records.json_intake import JsonIntake
from bronze.records.media import ColumnarType
from bronze.records.refusals import NOTHING_ACCEPTED
from bronze.records.sources import Source

#: How many different problems are listed.
PROBLEMS_MAX = 100
_NUMBERS = re.compile(r"[0-9][0-9.,_eE+-]*")


class Problem(NamedTuple):
    """A record that does not fit: where it is, in which field, and why."""

    batch: Batch
    record: int
    field: str | None
    reason: str

    @property
    def place(self) -> str:
        return self.batch.place(self.record)


@dataclass
class _Group:
    """Problems that differ by their place and by numbers in their reason."""

    first: Problem
    last: Problem
    records: int = 0

    def text(self) -> str:
        field_text = f", field {self.first.field}" if self.first.field else ""
        others = f" ({self.records:,} records like it, the last: {self.last.place})" if self.records > 1 else ""
        return f"{self.first.place}{field_text}: {self.first.reason}{others}"


class Findings:
    """The result of a check: how many records, how many of them are invalid, and the problems, those alike as one."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.files = 0
        self.records = 0
        self.invalid = 0
        self._groups: dict[object, _Group] = {}
        self._unreadable: list[str] = []
        self._unlisted = 0

    @property
    def all_valid(self) -> bool:
        return not self._groups and not self._unreadable

    @property
    def unreadable(self) -> int:
        """The number of files that cannot be read to their end."""
        return len(self._unreadable)

    @property
    def problems(self) -> list[str]:
        return [*(group.text() for group in self._groups.values()), *self._unreadable]

    def add(self, file: str, problem: Problem) -> None:
        self.invalid += 1
        alike = file, problem.field, _without_numbers(problem.reason)
        if alike not in self._groups:
            if len(self._groups) == PROBLEMS_MAX:
                self._unlisted += 1
                return
            self._groups[alike] = _Group(problem, problem)
        group = self._groups[alike]
        group.last = problem
        group.records += 1

    def add_unreadable(self, reason: str) -> None:
        """Adds a file that cannot be read to its end."""
        self._unreadable.append(reason)

    def text(self) -> str:
        verb = "does" if self.invalid == 1 else "do"
        result = "all of them fit the source" if not self.invalid else f"{self.invalid:,} {verb} not fit the source"
        if self._unreadable:
            read = f"{result}, and" if self.records else "but"
            result = f"{read} {counted(self.unreadable, 'file')} cannot be read to the end"
        more = [f"and {counted(self._unlisted, 'record')} with other problems"] if self._unlisted else []
        total = f"{counted(self.records, 'record')} in {counted(self.files, 'file')}, {result}; nothing was sent"
        return "\n".join([*self.problems, *more, f"{self.source}: {total}"])

    def json(self) -> str:
        names = ("source", "files", "unreadable", "records", "invalid", "problems")
        return json.dumps({name: getattr(self, name) for name in names})


def check(plan: Plan, source: Source, files: Sequence[str]) -> Findings:
    """Checks every record of the files as the API does."""
    findings = Findings(plan.source)
    for path in files:
        findings.files += 1
        try:
            with open_file(path) as file:
                for batch in batches_of(file, plan, lambda: source):
                    findings.records += batch.records
                    for problem in _problems(source, batch):
                        findings.add(path, problem)
        except Refused as error:
            findings.add_unreadable(str(error))
        except OSError as error:
            findings.add_unreadable(f"{display_name(path)}: cannot be read: {error.strerror or error}")
    return findings


def _problems(source: Source, batch: Batch) -> Sequence[Problem]:
    find = _row_problems if batch.media_type == ColumnarType.ARROW_STREAM else _line_problems
    return [Problem(batch, *found) for found in find(source, batch)]


@lru_cache
def _without_numbers(reason: str) -> str:
    return _NUMBERS.sub("", reason)


#: The index of a record in its batch, the field, and the reason.
_Found = Iterator[tuple[int, str | None, str]]


def _row_problems(source: Source, batch: Batch) -> _Found:
    import pyarrow as pa  # slow to import, and most files are text

    from bronze.records.columnar_intake import ColumnarIntake

    row = 0
    with pa.ipc.open_stream(batch.body) as stream:
        for rows in stream:
            try:
                intake = ColumnarIntake(source, stream.schema, BytesIO())
                invalid = intake.invalid_rows(rows)
            except Refused as error:  # a column does not fit
                yield from ((index, *_reason(error)) for index in range(batch.records))
                return
            yield from ((row + index, *invalid[index]) for index in sorted(invalid))
            valid = [index for index in range(rows.num_rows) if index not in invalid]
            try:
                intake.add(rows.take(pa.array(valid, pa.int64())) if invalid else rows)
            except Refused as error:  # a row is too large
                record = error.members.get("record")
                yield (row + valid[record] if isinstance(record, int) else row, *_reason(error))
            row += rows.num_rows


def _line_problems(source: Source, batch: Batch) -> _Found:
    lines = batch.body.removesuffix(b"\n").split(b"\n")
    start = 0
    while start < len(lines):
        found: list[tuple[int, str | None, str]] = []
        first = start
        intake = JsonIntake(
            source,
            body_bytes_max=2**62,
            spool_memory_bytes_max=2**62,
            on_rejected=lambda index, reason, name: found.append((first + index, name, reason)),  # noqa: B023  called below
        )
        try:
            intake.add_lines(b"\n".join([*lines[start:], b""]))
            start = len(lines)
        except Refused as error:  # a record is too large
            record = error.members.get("record")
            start = first + record if isinstance(record, int) else len(lines) - 1
            found.append((start, *_reason(error)))
            start += 1
        finally:
            intake.close()
        yield from found


def _reason(error: Refused) -> tuple[str | None, str]:
    """The field, and what is wrong with it, without the API's advice to the sender."""
    name = error.members.get("field")
    reason = error.detail.partition(f". {NOTHING_ACCEPTED}")[0].partition(": ")[2] or error.detail
    return (name if isinstance(name, str) else None), reason
