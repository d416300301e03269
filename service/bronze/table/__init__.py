"""Tables: the rows of each new object are appended to the Iceberg table of its source, once.

run              the role: it follows the feed, and lets each committer commit
committer        commits the objects of one source, in the order of their lanes
contents         what the tables hold, for retention
position         how far a table has come: per lane, the last message that it holds
first_snapshot   which snapshot made the rows of an object queryable
object_rows      the rows of an object, with the columns of the table
maintenance      the maintenance of the tables, beside the commits
table_telemetry  the span and the measurements of a commit

A role. Imports: errors, maintenance, objects, process, protocol, records, servers, telemetry.
Libraries: msgspec, opentelemetry, pyarrow.
"""
