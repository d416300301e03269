"""The corpus: an input per file, as base64 so that the files are text, in a folder per target."""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
#: Of all files together.
BYTES_MAX = 200_000


def inputs(target: str) -> Iterator[tuple[str, bytes]]:
    """Each input with its name."""
    for file in sorted((CORPUS / target).glob("*.b64")):
        yield file.stem, base64.b64decode(file.read_text())


def add(target: str, data: bytes, folder: Path = CORPUS) -> Path:
    """Write an input, under its digest."""
    file = folder / target / f"{hashlib.sha256(data).hexdigest()[:16]}.b64"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(base64.encodebytes(data).decode())
    return file
