"""The formats that are stored, and the rules of the chain.

request_headers   the headers of a request that sends records
submission_id     the id of a submission, which decides its lane
lane              the lanes of a source, with the names of their streams and subjects
message           the messages of the queue
rejected_records  the format of rejected records, in a message and in quarantine
limits            the bounds of an object, and the cut of waiting messages that fits them
chain             the decisions of the chain protocol
attempts          attempts to decode a cut, which find a message that kills its decoder
keys              the keys of objects in the bucket
quarantine        the keys and the user metadata of quarantine objects
documents         the footer of an object, its catalog entry, and the identity of a submission
entry_sizes       the sizes of objects, from their entries
removal           the record of an object that was removed from the bucket
erasure           the document and the proof of an erasure
expiry            the mark that says which objects of a lane have expired
snapshot_summary  what the snapshot of a table states
feed_event        the events of the HTTP feed
feed_cursor       the cursor of a follower of the HTTP feed: what it has received
principals        principals and their API keys: who may send and read what

Pure. Imports: errors.
Libraries: msgspec, uuid_utils, zstandard.
"""
