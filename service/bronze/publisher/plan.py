"""The options of a publish run."""

from dataclasses import dataclass

from bronze.publisher.formats import FileFormat

#: Default bounds of a submission. Its body then fits one message of the queue, which costs the queue least.
BATCH_RECORDS = 1_000
BATCH_BYTES = 900_000
RETRY_FOR_S = 300.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send, and how. `format` is None if file names determine it; `rate` is in records per second."""

    source: str
    run: str | None = None
    format: FileFormat | None = None
    records_max: int = BATCH_RECORDS
    bytes_max: int = BATCH_BYTES
    classification_id: str | None = None
    classification_column: str | None = None
    on_invalid: str | None = None
    rate: float | None = None
    parallel: int = 1
    retry_for_s: float = RETRY_FOR_S
