"""The documents of erasures in the bucket, and their proofs."""

import msgspec

from bronze.errors import Halted
from bronze.objects.json_document import read_json_document
from bronze.protocol.erasure import CONTENT_TYPE, FOLDER, Erasure, Proof, Selection, open_documents, proof_key
from bronze.servers.bucket import Bucket


async def find_open(bucket: Bucket, prefix: str, selection: Selection) -> Erasure | None:
    """The erasure of this selection that was begun and has no proof yet.

    Raises `Halted` if a document cannot be read.
    """
    keys = [key async for key in bucket.keys(f"{prefix}/{FOLDER}")]
    for key in open_documents(keys):
        erasure = await read_json_document(bucket, key, Erasure, "document of an erasure")
        if erasure and erasure.kind == selection.kind and erasure.selection.is_of(selection):
            return erasure
    return None


async def write_document(bucket: Bucket, prefix: str, erasure: Erasure) -> None:
    await bucket.create(erasure.key(prefix), msgspec.json.encode(erasure), {}, CONTENT_TYPE)


async def write_proof(bucket: Bucket, prefix: str, proof: Proof) -> Proof:
    """Create the proof, and return the one that counts: an existing one is never replaced."""
    key = proof_key(prefix, proof.erasure.erasure_id)
    await bucket.create(key, msgspec.json.encode(proof), {}, CONTENT_TYPE)
    return await read_proof(bucket, prefix, proof.erasure.erasure_id) or proof


async def read_proof(bucket: Bucket, prefix: str, erasure_id: str) -> Proof | None:
    """The proof of an erasure; None if there is none. Raises `Halted` if it cannot be read."""
    if not erasure_id.replace("-", "").isalnum():
        raise Halted(f"{erasure_id!r} is not the id of an erasure")
    return await read_json_document(bucket, proof_key(prefix, erasure_id), Proof, "proof of an erasure")
