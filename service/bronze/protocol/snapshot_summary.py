"""What Bronze states in the summary of a snapshot that it commits to a table, besides the position."""

from typing import Final

#: The number of objects whose rows were appended.
OBJECTS: Final = "bronze.objects"
#: The version of the source that the table's columns follow.
SCHEMA_VERSION: Final = "bronze.schema-version"
#: The span of the commit.
TRACEPARENT: Final = "bronze.traceparent"
