"""The secrets of a webhook, and the signature of a message (https://www.standardwebhooks.com, version 1)."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

from bronze.errors import Misconfigured

SECRET_PREFIX = "whsec_"  # noqa: S105  (only its beginning)
SECRET_BYTES_MIN, SECRET_BYTES_MAX = 24, 64


def parse_secrets(text: str, name: str) -> Sequence[bytes]:
    """The secrets in a text, separated by white space. Raises `Misconfigured`, without repeating any of them."""
    secrets = [_secret(word, name) for word in text.split()]
    if not secrets:
        raise Misconfigured(f"{name} has no secret: a webhook needs at least one (docs/events.md)")
    return secrets


def _secret(word: str, name: str) -> bytes:
    try:
        secret = base64.b64decode(word.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not word.startswith(SECRET_PREFIX) or not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        raise Misconfigured(
            f"{name}: a secret is {SECRET_PREFIX} and {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} random bytes in base64 "
            "(docs/events.md)"
        )
    return secret


def signed_headers(message_id: str, timestamp_s: int, body: bytes, secrets: Sequence[bytes]) -> dict[str, str]:
    """The headers that identify and sign a message: one signature per secret, so that a receiver may know any."""
    content = f"{message_id}.{timestamp_s}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(secret, content, hashlib.sha256)).decode() for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
