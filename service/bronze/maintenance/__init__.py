"""What is done to tables besides appending, by command and by the role.

task          what all are: planned or done, for one table at a time
compaction    replaces the small files of a table by larger ones with the same rows
expiry        removes old snapshots, and deletes the files that no snapshot has
reprocessing  fills the columns that were declared later
erasure       removes rows from the files of all snapshots, and from those that no snapshot has

Imports: errors, objects, plurals, protocol, records, servers.
Libraries: pyarrow.
"""
