"""Histories of the catalog's compare-and-set: what each consumer read and wrote, and when; and their check.

The register is the position of a lane: the last message that is stored. An entry replaces the position on which it was
computed. `local/faults/linearizable` decides whether one order of all operations explains every answer.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bronze.protocol.chain import Position
from bronze.protocol.documents import StoredObject
from bronze.protocol.lane import Lane
from bronze.servers.catalog import Catalog, Overtaken
from bronze.servers.jetstream import WRONG_LAST_SEQUENCE, ApiError
from local.builds import build_fault_tool

Operation = Mapping[str, str | int]
#: When an operation without an answer may have had its effect at last.
NEVER_NS = 2**62


class RecordedCatalog:
    """A catalog that notes what `position` and `append` ask and answer."""

    def __init__(self, catalog: Catalog, file: Path) -> None:
        self._catalog = catalog
        self._file = file.open("a", buffering=1)
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._catalog, name)

    async def position(self, lane: Lane) -> tuple[Position, str]:
        called_ns = time.monotonic_ns()  # the same clock in all processes
        position, stored_at = await self._catalog.position(lane)
        self._note("read", lane, called_ns, value=_value(position), returned=time.monotonic_ns())
        return position, stored_at

    async def append(self, lane: Lane, position: Position, stored: StoredObject) -> Position:
        of = {"expected": _value(position), "value": stored.contents.last}
        called_ns = time.monotonic_ns()
        self._note("unknown", lane, called_ns, returned=NEVER_NS, **of)
        try:
            after = await self._catalog.append(lane, position, stored)
        except Overtaken as error:
            # another refusal than this says only that a write is on its way, which may fail
            if isinstance(error.__cause__, ApiError) and error.__cause__.err_code == WRONG_LAST_SEQUENCE:
                self._note("refused", lane, called_ns, returned=time.monotonic_ns(), **of)
            raise
        self._note("written", lane, called_ns, returned=time.monotonic_ns(), **of)
        return after

    def _note(self, kind: str, lane: Lane, called_ns: int, **of: int) -> None:
        operation = {"process": os.getpid(), "register": lane.stream, "kind": kind, "called": called_ns, **of}
        self._file.write(json.dumps(operation) + "\n")


def _value(position: Position) -> int:
    return position.entry.last if position.entry else 0


def read(files: Iterable[Path]) -> list[Operation]:
    """The operations in files of `RecordedCatalog`.

    An append without an answer counts only if somebody saw its value; else it is as if it had no effect.
    """
    calls: dict[tuple[int, int], Operation] = {}
    for line in (line for file in sorted(files) for line in file.read_text().splitlines()):
        operation = json.loads(line)
        calls[operation["process"], operation["called"]] = operation  # the answer replaces the call
    operations = [{**operation, "client": client} for client, operation in enumerate(calls.values())]
    seen = {(one["register"], one["value"]) for one in operations if one["kind"] in {"read", "written"}}
    seen |= {(one["register"], one["expected"]) for one in operations if "expected" in one}
    return [one for one in operations if one["kind"] != "unknown" or (one["register"], one["value"]) in seen]


def writes(operations: Iterable[Operation]) -> list[Operation]:
    """Without the reads: a leader that is cut off answers them with what it had, until it knows that it leads no more,
    which takes some seconds. A write on what it read is refused.
    """
    return [one for one in operations if one["kind"] != "read"]


def not_linearizable(operations: Sequence[Operation]) -> list[str]:
    """The registers whose operations no order explains."""
    checked = subprocess.run(
        [build_fault_tool("linearizable")],
        input=json.dumps(operations),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    lines = checked.stdout.splitlines()
    assert checked.returncode == bool(lines), f"the check failed with {checked.returncode}: {lines}"
    return lines
