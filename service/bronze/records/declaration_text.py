"""The text of declarations that Bronze proposes: names of columns, and strings of TOML."""

import re
from collections.abc import Collection

import msgspec

_NOT_IN_A_NAME = re.compile(r"[^a-z0-9]+")
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def column_name(name: str, taken: Collection[str]) -> str:
    """A name that a field can have, made from any other, which no other field has."""
    words = _NOT_IN_A_NAME.sub("_", _WORDS.sub("_", name).lower()).strip("_")
    base = (words if words[:1].isalpha() else f"f_{words}".rstrip("_"))[:60]
    column, number = base, 2
    while column in taken:
        column, number = f"{base[:57]}_{number}", number + 1
    return column


def quoted(text: str) -> str:
    """A basic string of TOML."""
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")
