"""What Bronze states in the summary of a snapshot that it commits to a table, besides the position; and what that says
of an object.
"""

from dataclasses import dataclass
from typing import Final

#: The number of objects whose rows were appended.
OBJECTS: Final = "bronze.objects"
#: The version of the source that the table's columns follow.
SCHEMA_VERSION: Final = "bronze.schema-version"
#: The span of the commit.
TRACEPARENT: Final = "bronze.traceparent"


@dataclass(frozen=True, slots=True)
class FirstSnapshot:
    """The first snapshot that has the rows of an object. `committed_at` is RFC 3339 in UTC.

    `snapshot_id` is text, since many readers of JSON round numbers of this size. `is_exact`: False if snapshots from
    before it have expired, so that readers may have seen the rows earlier. `trace_id` is that of its commit; None if
    `bronze table` did not append in it.
    """

    snapshot_id: str
    committed_at: str
    is_exact: bool
    trace_id: str | None
