"""An independent reading of the bucket: S3 and PyArrow alone, without the service's code, queue or telemetry."""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import pyarrow.parquet as pq

from local.evidence import source_of
from tests.system.blackbox import System

READERS = 8
#: The source of `bronze canary`, which no number of data counts.
CANARY = "canary"


@dataclass(frozen=True)
class Object:
    """One object: its size as listed, its rows by submission, and what its footer says."""

    key: str
    bytes: int
    written_at: float
    rows: Mapping[str, int]
    footer: Mapping[str, Any]

    @property
    def source(self) -> str:
        return source_of(self.key)

    @property
    def upload_span(self) -> str:
        """The id of the upload's span, from its `traceparent`."""
        return str(self.footer["traceparent"].split("-")[2])


@dataclass
class Bucket:
    """All objects. An object never changes, so each is read once unless a reading is asked to be complete."""

    system: System
    objects: dict[str, Object] = field(default_factory=dict)

    def read(self, *, again: bool = False) -> "Bucket":
        """Reads the footer and the rows of every object that was not read yet; with `again`, of all of them."""
        if again:
            self.objects = {}
        pages = self.system.s3.get_paginator("list_objects_v2").paginate(Bucket=self.system.bucket)
        listed = [item for page in pages for item in page.get("Contents", ())]
        keys = {item["Key"] for item in listed}
        self.objects = {key: found for key, found in self.objects.items() if key in keys}
        new = [i for i in listed if i["Key"].endswith(".parquet") and i["Key"] not in self.objects]
        with ThreadPoolExecutor(READERS) as readers:
            for found in readers.map(self._object, new):
                self.objects[found.key] = found
        return self

    def _object(self, listed: Mapping[str, Any]) -> Object:
        file = pq.ParquetFile(BytesIO(self.system.body(listed["Key"])))
        rows = Counter(file.read(columns=["_submission_id"]).column(0).to_pylist())
        footer = json.loads(file.schema_arrow.metadata[b"bronze"])
        at = listed["LastModified"].timestamp()
        return Object(listed["Key"], listed["Size"], at, rows, footer)

    # --- its sums, by source

    def records(self) -> Counter[str]:
        return Counter({s: sum(o.rows.total() for o in self.of(s)) for s in self.sources()})  # type: ignore[attr-defined]

    def quarantined(self) -> int:
        """The records in quarantine, which the footers list."""
        return sum(message["records"] for o in self.objects.values() for message in o.footer["quarantined"])

    def sizes(self) -> Counter[str]:
        return Counter({source: sum(o.bytes for o in self.of(source)) for source in self.sources()})

    def counts(self) -> Counter[str]:
        return Counter(o.source for o in self.objects.values())

    def sources(self) -> list[str]:
        return sorted({o.source for o in self.objects.values()})

    def of(self, source: str) -> list[Object]:
        return [o for o in self.objects.values() if o.source == source]

    def by_submission(self, sources: Collection[str]) -> Counter[str]:
        """Rows of each submission, in all objects of these sources."""
        rows: Counter[str] = Counter()
        for o in self.objects.values():
            if o.source in sources:
                rows.update(o.rows)
        return rows
