"""What is done to tables besides appending, by command and by the role.

task          what all are: planned or done, for one table at a time
compaction    replaces the small files of a table by larger ones with the same rows
expiry        removes old snapshots, and deletes the files that no snapshot has
reprocessing  fills the columns that were declared later

Imports: objects, plurals, protocol, records, servers.
Libraries: none.
"""
