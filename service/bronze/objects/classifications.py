"""The classifications that the rows of an object belong to, as its footer states them."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bronze.protocol.documents import CLASSIFICATIONS_LISTED_MAX


class Classifications:
    """The classifications of an object that is being written."""

    def __init__(self) -> None:
        self._found: list[pa.Array] = []

    def add(self, column: pa.Array) -> None:
        # a copy: the column may keep its whole message in memory
        self._found.append(column.unique())

    def facts(self) -> dict[str, Any]:
        """The fields of `Contents` about them."""
        found = pa.chunked_array(self._found, pa.string()).unique()
        bounds = pc.min_max(found)
        return {
            "classifications": found[:CLASSIFICATIONS_LISTED_MAX].to_pylist(),
            "classification_count": len(found),
            "classification_least": bounds["min"].as_py(),
            "classification_greatest": bounds["max"].as_py(),
        }
