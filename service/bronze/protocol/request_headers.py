"""The headers of a request that sends records, for the API and its clients."""

from string import printable, whitespace
from urllib.parse import quote, unquote

IDEMPOTENCY_KEY = "Idempotency-Key"
CLASSIFICATION_ID = "Bronze-Classification-Id"
FILE_NAME = "Bronze-File-Name"

_PLAIN = "".join(character for character in printable if character not in whitespace and character != "%") + " "


def encode(text: str) -> str:
    """A text as the value of a header: UTF-8, with all but plain ASCII percent-encoded (RFC 3986)."""
    return quote(text, safe=_PLAIN, errors="replace")


def decode(value: str) -> str:
    """The text that a header's value encodes."""
    return unquote(value)
