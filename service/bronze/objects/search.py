"""Which submissions have rows of a classification in an object."""

from collections import Counter
from collections.abc import Mapping
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from bronze.objects.footer import NotABronzeObject


def submissions_with(file: BinaryIO, classification_id: str) -> Mapping[str, int]:
    """The number of rows of a classification in an object, by submission; raises `NotABronzeObject`.

    Only two columns of the row groups that may have such rows are read.
    """
    rows_by_submission: Counter[str] = Counter()
    try:
        with pq.ParquetFile(file) as parquet:
            metadata = parquet.metadata
            number = parquet.schema_arrow.get_field_index("classification_id")
            for group in range(metadata.num_row_groups):
                statistics = metadata.row_group(group).column(number).statistics
                if statistics.has_min_max and not statistics.min <= classification_id <= statistics.max:
                    continue
                rows = parquet.read_row_group(group, ["classification_id", "_submission_id"])
                rows_by_submission.update(rows.filter(pc.equal(rows[0], classification_id))[1].to_pylist())
    except (pa.ArrowException, KeyError, IndexError) as error:
        raise NotABronzeObject(f"its rows cannot be read: {error}") from error
    return rows_by_submission
