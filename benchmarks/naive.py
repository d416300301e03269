"""What the service is compared with: the way from HTTP to Parquet in S3 that takes an afternoon to write.

One request, one object: decode, write Parquet with the raw lines beside the columns, put, answer. No queue, so the
answer waits for S3; no identity, so a retry is stored twice; no catalog, no trace, and an object for each request.
`python -m benchmarks.naive PORT PREFIX INSTANCE`.
"""

import datetime as dt
import io
import os
import sys
from uuid import uuid4

import boto3
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool

from local.programs import LOOPBACK

SCHEMA = pa.schema(
    {
        "classification_id": pa.string(),
        "vehicle_id": pa.string(),
        "operator": pa.string(),
        "run_number": pa.int64(),
        "origin": pa.string(),
        "destination": pa.string(),
        "scheduled_at": pa.timestamp("us", "UTC"),
        "departed_at": pa.timestamp("us", "UTC"),
        "delay_min": pa.float64(),
    }
)
REQUIRED = ("operator", "run_number", "origin", "destination", "scheduled_at")
AS_DECLARED = pyarrow.json.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="ignore")


def create_app(prefix: str, instance: str) -> FastAPI:
    app = FastAPI()
    bucket = os.environ["BRONZE_BUCKET"]
    s3 = boto3.client("s3")

    def store(body: bytes) -> dict[str, object]:
        try:
            table = pyarrow.json.read_json(io.BytesIO(body), parse_options=AS_DECLARED)
        except pa.ArrowInvalid as error:
            raise HTTPException(422, str(error)) from error
        for name in REQUIRED:
            if table.column(name).null_count:
                raise HTTPException(422, f"{name} is missing")
        table = table.append_column("payload", pa.array(body.splitlines(), pa.string()))
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        key = f"{prefix}/date={dt.datetime.now(dt.UTC):%Y-%m-%d}/{uuid4()}.parquet"
        s3.put_object(Bucket=bucket, Key=key, Body=sink.getvalue())
        return {"key": key, "records": table.num_rows}

    @app.post("/ingest", status_code=201)
    async def ingest(request: Request) -> dict[str, object]:
        return await run_in_threadpool(store, await request.body())

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"service_instance_id": instance}

    return app


if __name__ == "__main__":
    _, port, prefix, instance = sys.argv
    uvicorn.run(create_app(prefix, instance), host=LOOPBACK, port=int(port), log_level="warning", access_log=False)
