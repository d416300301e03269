"""The Parquet file of an object: writing and reading.

encoder         makes one Parquet file of a cut
rows            makes record batches of the messages' records
file_writer     writes the file, row group by row group
measurements    what an object says of the values in its columns
classifications  the classifications that the rows of an object belong to
event_times     the event times of an object, and how late its rows were received
footer          describes an object, in its footer and in its user metadata in S3
reader          reads objects in the bucket without fetching all their bytes
selection       which rows and records an erasure is about
erasing         removes rows from an object
quarantine_erasing  removes records from a message in quarantine
reprocessing    fills columns that were declared later
preview         the first rows of an object
ledger          counts what a lane holds, where its entries do not say it
json_document   reads a JSON document beside the objects
removals        reads and writes removal records
erasures        reads and writes the documents and proofs of erasures
expiry          reads and writes expiry marks
differences     finds objects that are gone, or have another size than the catalog says
removed_ranges  the gaps in the chains of the bucket that removal records explain
search          finds the submissions that have rows of a classification

Imports: errors, protocol, records, servers.
Libraries: msgspec, pyarrow.
"""
