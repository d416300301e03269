"""What a small submission is compared with: an endpoint that publishes the body to the queue, waits, and does no more.

The same server with the same sync, a stream with the same settings, the same HTTP server and framework, the same client
library. `python -m benchmarks.bare PORT NATS_URL INSTANCE`.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
import uvicorn
from fastapi import FastAPI, Request, Response
from nats.js.api import DiscardPolicy, StorageType, StreamConfig

from local.programs import LOOPBACK

STREAM = "BENCH_BARE"
SUBJECT = "bench.bare"
BYTES_MAX = 2**30


def create_app(queue: str, instance: str) -> FastAPI:
    @asynccontextmanager
    async def connected(app: FastAPI) -> AsyncIterator[None]:
        client = await nats.connect(queue)
        app.state.jetstream = client.jetstream()
        await app.state.jetstream.add_stream(
            StreamConfig(
                name=STREAM,
                subjects=[SUBJECT],
                storage=StorageType.FILE,
                discard=DiscardPolicy.NEW,
                max_bytes=BYTES_MAX,
                allow_direct=True,
            )
        )
        yield
        await client.close()

    app = FastAPI(lifespan=connected)

    @app.post("/publish")
    async def publish(request: Request) -> Response:
        await app.state.jetstream.publish(SUBJECT, await request.body())
        return Response(status_code=202)

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"service_instance_id": instance}

    return app


if __name__ == "__main__":
    _, port, queue, instance = sys.argv
    uvicorn.run(create_app(queue, instance), host=LOOPBACK, port=int(port), log_level="warning", access_log=False)
