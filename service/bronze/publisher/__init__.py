"""The publisher: sends the records of files to the ingestion API, watches a directory, or simulates a vehicle fleet.

files       opens a file and identifies its content
formats     recognizes its format
reading     reads its records, with text_files and columnar_files; declared has the source's fields
batches     makes submissions of them
sending     sends one submission, with retries
publishing  does so for several files, watching for files that arrive; progress shows the result
checking    checks records without sending them
simulating  sends invented records
command     the command line

A submission's Idempotency-Key is computed from its file's path and content and from its number in the file. So a
repeated request or command never stores a second copy.

A role. Imports: client, errors, plurals, protocol, records, settings, telemetry.
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
