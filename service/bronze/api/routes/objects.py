"""`GET /v1/objects/{file_path}`: the contents of an object."""

from fastapi import FastAPI, Request

from bronze.api import problems
from bronze.api.authentication import require_read, require_read_every
from bronze.api.models import ObjectContents
from bronze.api.openapi_security import reading
from bronze.errors import Halted, Refusal, Refused
from bronze.lineage.lookup import removed_error
from bronze.objects.reader import read_contents
from bronze.objects.removals import read_effective_removal, read_removal
from bronze.protocol.keys import lane_of_key, may_be_object
from bronze.servers.bucket import Bucket


def add(app: FastAPI, bucket: Bucket, prefix: str) -> None:
    """Add the route that describes the objects under a prefix."""

    @app.get(
        "/v1/objects/{file_path:path}",
        summary="The contents of an object",
        responses=problems.responses(401, 403, 404, 410, 429, 503),
        openapi_extra=reading("read:{source}"),
    )
    async def contents(request: Request, file_path: str) -> ObjectContents:
        return await _contents(request, bucket, prefix, file_path)


async def _contents(request: Request, bucket: Bucket, prefix: str, file_path: str) -> ObjectContents:
    missing = Refused(Refusal.NOT_FOUND, f"There is no object {file_path!r} in the bucket.")
    lane = lane_of_key(file_path)
    if lane is None or not may_be_object(prefix, file_path):
        require_read_every(request)
    else:
        require_read(request, lane[0].source)
    if not may_be_object(prefix, file_path):
        raise missing
    head = await bucket.head(file_path)
    try:
        contents = await read_contents(bucket, file_path) if head else None
    except Halted as error:
        contents = None
        missing = Refused(Refusal.NOT_FOUND, f"{error}.")
    if head is None or contents is None:
        removal = await read_removal(bucket, prefix, file_path)
    else:
        removal = await read_effective_removal(bucket, prefix, file_path, head.stored_size)
    if removal:
        raise removed_error(file_path, removal)
    if head is None or contents is None:
        raise missing
    require_read(request, contents.source)  # it may have been copied
    return ObjectContents.of(contents, head)
