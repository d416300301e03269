"""What is to be sent, and how: the options of a run, in one frozen place."""

from dataclasses import dataclass

from bronze.publisher.formats import FileFormat

#: Of a submission: the body then fits one message of the queue, its cheapest way.
BATCH_RECORDS = 1_000
BATCH_BYTES = 900_000
RETRY_FOR_S = 300.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be sent, and how. `format` is None where each file's name tells; `rate` is in records a second."""

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
