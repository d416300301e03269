"""What keeps tables fast and small, by command and by the role: neither changes a row that readers see.

task        what both are: planned or done, for one table at a time
compaction  replaces the small files of a table by larger ones with the same rows
expiry      removes old snapshots, and deletes the files that no snapshot has

Imports: plurals, servers.
Libraries: none.
"""
