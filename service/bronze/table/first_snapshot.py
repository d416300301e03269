"""Which snapshot of a table made the rows of an object queryable."""

from bronze.protocol.documents import trace_id_of
from bronze.protocol.snapshot_summary import TRACEPARENT, FirstSnapshot
from bronze.servers.iceberg import POSITION, TableHistory, Tables
from bronze.table.position import TablePosition


class FirstSnapshots:
    """The snapshots of tables, each table as it is when it is first asked for. The methods block."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._histories: dict[str, TableHistory | None] = {}

    def find(self, source: str, epoch: str, lane: int, last: int) -> FirstSnapshot | None:
        """The first snapshot with the rows of the object that ends with message `last` of a lane; None if the table of
        its source does not have them. Snapshots that were put back do not count.

        Raises `Unavailable`, and `Halted` if the position of a snapshot cannot be read.
        """
        if source not in self._histories:
            self._histories[source] = self._tables.history(source) if self._tables.exists(source) else None
        history = self._histories[source]
        before = 0
        for snapshot in history.current_line if history else ():
            position = snapshot.summary.get(POSITION)
            if position is not None and TablePosition.decode(position, source).lanes.get((lane, epoch), -1) >= last:
                traceparent = snapshot.summary.get(TRACEPARENT)
                return FirstSnapshot(
                    str(snapshot.id),
                    snapshot.committed_at.isoformat(timespec="milliseconds"),
                    snapshot.sequence == before + 1,
                    trace_id_of(traceparent) if traceparent else None,
                )
            before = snapshot.sequence
        return None
