"""What a small submission is compared with: an endpoint that publishes the body to the queue, waits, and does no more.

The same server with the same sync, a stream with the same settings, the same HTTP server and framework, the same client
library. `python -m benchmarks.bare PORT INSTANCE`, with the settings of the queue.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request, Response
from nats.js.api import DiscardPolicy, StorageType, StreamConfig

import nats
from bronze import settings
from local.programs import LOOPBACK

STREAM = "BENCH_BARE"
SUBJECT = "bronze.bench"  # of no lane
BYTES_MAX = 2**30


def create_app(instance: str) -> FastAPI:
    @asynccontextmanager
    async def connected(app: FastAPI) -> AsyncIterator[None]:
        queue = settings.load().queue_servers
        client = await nats.connect(
            list(queue.urls), user=queue.user, password=queue.read_password(), inbox_prefix=queue.inbox_prefix
        )
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
    _, port, instance = sys.argv
    uvicorn.run(create_app(instance), host=LOOPBACK, port=int(port), log_level="warning", access_log=False)
