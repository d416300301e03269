"""The options of a publish run."""

from dataclasses import dataclass

from bronze.publisher.formats import ANY_CSV, CsvOptions, FileFormat

#: Default bounds of a submission of a text file. Its body then fits one message of the queue, which costs the queue
#: least.
BATCH_RECORDS = 1_000
BATCH_BYTES = 900_000
#: The same of a Parquet or Arrow file. For each of its submissions, the API starts a process, which takes 0.2 s.
COLUMNAR_BATCH_RECORDS = 50_000
COLUMNAR_BATCH_BYTES = 16 * 2**20
RETRY_FOR_S = 300.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send, and how. `format` is None if file names determine it; `rate` is in records per second.

    `records_max` and `bytes_max` are None if the format of the file determines them.
    """

    source: str
    run: str | None = None
    format: FileFormat | None = None
    records_max: int | None = None
    bytes_max: int | None = None
    classification_id: str | None = None
    classification_column: str | None = None
    on_invalid: str | None = None
    rate: float | None = None
    parallel: int = 1
    retry_for_s: float = RETRY_FOR_S
    csv: CsvOptions = ANY_CSV
