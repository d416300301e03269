"""The publisher: sends the records of files to the API, watches a directory, or simulates a vehicle fleet.

command                     the command lines of `bronze publish` and `bronze simulate`
plan                        the options of a publish run
files                       opens a file and identifies its content
object_files                reads and finds objects of a bucket (`s3://`)
formats                     recognizes the format of a file
csv_options                 the options that say how CSV files are written
declared                    fetches the declaration of the source from the API
reading                     reads the records of a text file, or the bodies of a Parquet or Arrow file
text_files, columnar_files  read the records of NDJSON, JSON and CSV, and the rows of Parquet and Arrow
batches                     makes submissions of the records
sending                     sends one submission, with retries
publishing                  sends the files that are given
watching                    sends each file that arrives in a directory, once
inferring                   infers a declaration from files (`bronze sources infer`)
checking                    checks the records of files and sends nothing (`--dry-run`)
simulating, fleet           send records slowly, and invent them
stopping                    what a stop signal does
progress                    the progress bar, the summary and the report

A submission's Idempotency-Key is computed from its file's path and content and from its number in the file. So a
repeated request or command never stores a second copy.

A role. Imports: client, errors, plurals, printable, protocol, records, settings, telemetry.
Libraries: boto3, botocore, httpx, msgspec, mypy_boto3_s3, opentelemetry, pyarrow, rich.
"""

from bronze.client.calls import BACK_OFF_S_FIRST, BACK_OFF_S_MAX
from bronze.publisher.batches import Batch, batches
from bronze.publisher.command import publish_arguments, run_publish, run_simulate, simulate_arguments
from bronze.publisher.formats import STDIN, FileFormat
from bronze.publisher.inferring import infer_arguments, run_infer
from bronze.publisher.plan import BATCH_BYTES, BATCH_RECORDS, RETRY_FOR_S, Plan
from bronze.publisher.progress import Summary
from bronze.publisher.publishing import publish
from bronze.publisher.sending import Receipt, Sender, file_name
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
    "infer_arguments",
    "publish",
    "publish_arguments",
    "run_infer",
    "run_publish",
    "run_simulate",
    "simulate",
    "simulate_arguments",
    "watch",
]
