"""The headers of a request that sends records, for the API and its clients."""

from string import printable, whitespace
from urllib.parse import quote, unquote

IDEMPOTENCY_KEY = "Idempotency-Key"
CLASSIFICATION_ID = "Bronze-Classification-Id"
FILE_NAME = "Bronze-File-Name"

_PLAIN = "".join(character for character in printable if character not in whitespace and character != "%") + " "


def encode(text: str) -> str:
    """A text as the value of a header: UTF-8, with all but plain ASCII percent-encoded (RFC 3986).

    A space is plain within the text only: at the ends of a header's value, HTTP does not allow it (RFC 9110).
    """
    plain = text.strip(" ")
    start, _, end = text.partition(plain) if plain else (text, "", "")
    return "%20" * len(start) + quote(plain, safe=_PLAIN, errors="backslashreplace") + "%20" * len(end)


def decode(value: str) -> str:
    """The text that a header's value or a part of a query encodes; raises `UnicodeError` if it is not UTF-8.

    A text that is decoded with replacement would be that of other bytes, too.
    """
    return unquote(value.encode("ascii").decode(), errors="strict")
