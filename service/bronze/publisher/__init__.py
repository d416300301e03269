"""The publisher: sends the records of files to the ingestion API, watches for files that arrive, or plays a slow fleet.

The way of a record: `files` knows a file's content, `reading` reads its records by `formats`, `batches` makes
submissions of them, `sending` sends each until there is an answer, `publishing` does so for several files and
`watching` for those that arrive; `progress` tells. `checking` only checks, `simulating` needs no file, `command` is the
command line.

A submission's Idempotency-Key is made from its file's path and content and from its number in the file, so a repeated
request, run or command never makes a second copy.

A role. Imports: client, errors, protocol, records, settings, telemetry.
Libraries: httpx, msgspec, opentelemetry, pyarrow, rich.
"""

from bronze.publisher.batches import Batch, batches
from bronze.publisher.command import publish_arguments, run_publish, run_simulate, simulate_arguments
from bronze.publisher.formats import STDIN, FileFormat
from bronze.publisher.plan import BATCH_BYTES, BATCH_RECORDS, RETRY_FOR_S, Plan
from bronze.publisher.progress import Summary
from bronze.publisher.publishing import publish
from bronze.publisher.sending import BACK_OFF_S_FIRST, BACK_OFF_S_MAX, Receipt, Sender, file_name
from bronze.publisher.simulating import simulate
from bronze.publisher.stopping import Stop
from bronze.publisher.watching import watch

__all__ = [
    "BACK_OFF_S_FIRST",
    "BACK_OFF_S_MAX",
    "BATCH_BYTES",
    "BATCH_RECORDS",
    "RETRY_FOR_S",
    "STDIN",
    "Batch",
    "FileFormat",
    "Plan",
    "Receipt",
    "Sender",
    "Stop",
    "Summary",
    "batches",
    "file_name",
    "publish",
    "publish_arguments",
    "run_publish",
    "run_simulate",
    "simulate",
    "simulate_arguments",
    "watch",
]
