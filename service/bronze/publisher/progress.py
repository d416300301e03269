"""The progress and the result of a publish run: a summary, a progress bar and a report."""

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from bronze.plurals import counted
from bronze.publisher.batches import Batch
from bronze.publisher.formats import STDIN, display_name
from bronze.publisher.sending import Receipt

_LISTED_MAX = 10


@dataclass
class Summary:
    """The result of a publish run: what was accepted, and in `error` why it ended early, if it did.

    `error_status` is the status of the refusal, if it was one.
    `records_again` counts those of `records` that had already been accepted by an earlier publish run. `refused` has
    the files that were refused while a directory was watched, with the reasons.
    """

    source: str
    run: str | None = None
    files: int = 0
    submissions: int = 0
    records: int = 0
    records_again: int = 0
    records_rejected: int = 0
    bytes: int = 0
    seconds: float = 0.0
    retries: int = 0
    submission_id_first: str | None = None
    submission_id_last: str | None = None
    refused: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    error_status: int | None = None

    @property
    def records_per_s(self) -> float:
        return self.records / self.seconds if self.seconds else 0.0

    def add(self, batch: Batch, receipt: Receipt) -> None:
        self.submissions += 1
        self.records += receipt.records
        self.records_again += receipt.records if receipt.again else 0
        self.records_rejected += receipt.rejected
        self.bytes += len(batch.body)
        self.submission_id_first = self.submission_id_first or receipt.submission_id
        self.submission_id_last = receipt.submission_id

    def text(self) -> str:
        notes = [counted(self.retries, "retry", "retries")]
        if self.records_again:
            notes.append(f"{counted(self.records_again, 'record')} had already been accepted by an earlier publish run")
        if self.records_rejected:
            notes.append(f"{counted(self.records_rejected, 'record')} went to quarantine")
        accepted = f"{counted(self.records, 'record')} accepted in {counted(self.submissions, 'submission')}"
        lines = [
            f"{self.source}: {accepted}, {counted(self.bytes, 'byte')} in {self.seconds:.1f} s "
            f"({self.records_per_s:,.0f} records/s, {'; '.join(notes)})" + (f", run {self.run}" if self.run else "")
        ]
        if self.refused:
            verb = "was" if len(self.refused) == 1 else "were"
            lines.append(
                f"{counted(len(self.refused), 'file')} {verb} refused; correct a file without moving it to send it:"
            )
            lines += [f"  {reason}" for reason in list(self.refused.values())[:_LISTED_MAX]]
        return "\n".join(lines)

    def json(self) -> str:
        rounded = {"seconds": round(self.seconds, 3), "records_per_s": round(self.records_per_s, 1)}
        return json.dumps(asdict(self) | rounded)


class Report:
    """Writes one line of JSON for each accepted submission."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()

    def accepted(self, source: str, batch: Batch, receipt: Receipt) -> None:
        entry: Mapping[str, object] = {
            "submission_id": receipt.submission_id,
            "trace_id": receipt.trace_id,
            "source": source,
            "records": receipt.records,
            "file": batch.file if batch.file == STDIN else display_name(batch.file),
            f"{batch.unit}_first": batch.numbers[0],
            f"{batch.unit}_last": batch.numbers[-1],
        }
        with self._lock:
            print(json.dumps(entry), file=self._out, flush=True)


class Bar:
    """A progress bar on standard error. Percentage and remaining time need the size of all files."""

    def __init__(self, source: str, size: int | None, *, shown: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[records]:,} records"),
            TextColumn("{task.fields[rate]:,.0f}/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not shown,
            transient=True,
        )
        self._task = self._progress.add_task(source, total=size, records=0, rate=0.0, note="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def accepted(self, batch: Batch, summary: Summary) -> None:
        self._progress.update(
            self._task,
            advance=batch.bytes_read,
            records=summary.records,
            rate=summary.records_per_s,
            note="",
        )

    def retrying(self, delay_s: float) -> None:
        self._progress.update(self._task, note=f"retry in {delay_s:.0f} s")
