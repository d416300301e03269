"""Checking: finds the records that the API would refuse, without sending anything."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO

from bronze.errors import Refused
from bronze.plurals import counted
from bronze.publisher.batches import Batch, batches_of
from bronze.publisher.files import open_file
from bronze.publisher.plan import Plan
from bronze.records.json_intake import JsonIntake
from bronze.records.media import ColumnarType
from bronze.records.refusals import NOTHING_ACCEPTED
from bronze.records.sources import Source

PROBLEMS_MAX = 100


@dataclass
class Findings:
    """The result of a check: how many records, how many of them are invalid, and the first problems."""

    source: str
    files: int = 0
    records: int = 0
    invalid: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def all_valid(self) -> bool:
        return not self.problems

    def add(self, problem: str, records: int = 1) -> None:
        self.invalid += records
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)

    def text(self) -> str:
        verb = "does" if self.invalid == 1 else "do"
        result = "all of them fit the source" if self.all_valid else f"{self.invalid:,} {verb} not fit the source"
        more = [f"and {self.invalid - len(self.problems):,} more"] if self.invalid > len(self.problems) else []
        total = f"{counted(self.records, 'record')} in {counted(self.files, 'file')}, {result}; nothing was sent"
        return "\n".join([*self.problems, *more, f"{self.source}: {total}"])

    def json(self) -> str:
        return json.dumps(vars(self))


def check(plan: Plan, source: Source, files: Sequence[str]) -> Findings:
    """Checks every record of the files as the API does. Raises `OSError`."""
    findings = Findings(plan.source)
    for path in files:
        findings.files += 1
        try:
            with open_file(path) as file:
                for batch in batches_of(file, plan, lambda: source):
                    findings.records += batch.records
                    for problem in _problems(source, batch):
                        findings.add(problem)
        except Refused as error:  # the rest of this file cannot be read
            findings.add(str(error), 0)
    return findings


def _problems(source: Source, batch: Batch) -> Iterator[str]:
    return (
        _row_problems(source, batch) if batch.media_type == ColumnarType.ARROW_STREAM else _line_problems(source, batch)
    )


def _row_problems(source: Source, batch: Batch) -> Iterator[str]:
    import pyarrow as pa  # slow to import, and most files are text

    from bronze.records.columnar_intake import ColumnarIntake

    row = 0
    with pa.ipc.open_stream(batch.body) as stream:
        for rows in stream:
            try:
                intake = ColumnarIntake(source, stream.schema, BytesIO())
                invalid = intake.invalid_rows(rows)
            except Refused as error:  # a column does not fit
                yield from (f"{batch.place(index)}{_reason(error)}" for index in range(batch.records))
                return
            for index, (name, reason) in sorted(invalid.items()):
                yield f"{batch.place(row + index)}, field {name}: {reason}"
            valid = [index for index in range(rows.num_rows) if index not in invalid]
            try:
                intake.add(rows.take(pa.array(valid, pa.int64())) if invalid else rows)
            except Refused as error:  # a row is too large
                record = error.members.get("record")
                yield f"{batch.place(row + valid[record] if isinstance(record, int) else None)}{_reason(error)}"
            row += rows.num_rows


def _line_problems(source: Source, batch: Batch) -> Iterator[str]:
    lines = batch.body.removesuffix(b"\n").split(b"\n")
    start = 0
    while start < len(lines):
        intake = JsonIntake(source, body_bytes_max=2**62, spool_memory_bytes_max=2**62)
        try:
            intake.add_lines(b"\n".join(lines[start:]))
            intake.finish().close()
        except Refused as error:
            record = error.members.get("record")
            index = start + record if isinstance(record, int) else len(lines) - 1
            yield f"{batch.place(index)}{_reason(error)}"
            start = index + 1
        else:
            return
        finally:
            intake.close()


def _reason(error: Refused) -> str:
    """What is wrong with a record, without the API's advice to the sender."""
    field_name = error.members.get("field")
    reason = error.detail.partition(f". {NOTHING_ACCEPTED}")[0].partition(": ")[2] or error.detail
    return f", field {field_name}: {reason}" if field_name else f": {reason}"
