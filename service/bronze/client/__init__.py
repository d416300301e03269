"""The Python client of the API: it submits records, waits until they are stored, and follows and reads objects.

clients      the clients for programs: `Client` and `AsyncClient`
calls        what they send, and how answers are read, with retries
results      what they return
checkpoint   where a follower stores its cursor
objects      reads the rows of objects from the bucket, as Arrow
condition    conditions on rows as text, as in an SQL WHERE clause
connection   the HTTP client of commands, and the errors that answers stand for

    from bronze.client import Client

    with Client() as bronze:
        submission = bronze.submit("vehicles", [{"vehicle_id": "N14228", "seats": 149}])
        bronze.wait_until_stored(submission.submission_id)

Imports: errors, printable, protocol, records, settings.
Libraries: httpx, msgspec, opentelemetry, pyarrow.
"""

from bronze.client.checkpoint import Checkpoint, FileCheckpoint
from bronze.client.clients import AsyncClient, Client
from bronze.client.connection import TIMEOUT, connect, connect_async, failure, problem_of, retry_after_s, unreachable
from bronze.client.results import FeedPage, Status, StoredObject, Submission
from bronze.errors import BronzeError, Misconfigured, Refused, Unavailable
from bronze.protocol.feed_event import FeedEvent, ObjectEvent, RemovalEvent

__all__ = [
    "TIMEOUT",
    "AsyncClient",
    "BronzeError",
    "Checkpoint",
    "Client",
    "FeedEvent",
    "FeedPage",
    "FileCheckpoint",
    "Misconfigured",
    "ObjectEvent",
    "Refused",
    "RemovalEvent",
    "Status",
    "StoredObject",
    "Submission",
    "Unavailable",
    "connect",
    "connect_async",
    "failure",
    "problem_of",
    "retry_after_s",
    "unreachable",
]
