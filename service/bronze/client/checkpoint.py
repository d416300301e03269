"""Where a follower stores its cursor."""

import os
from pathlib import Path
from typing import Protocol


class Checkpoint(Protocol):
    """Stores the cursor of a follower. `load` returns an empty text if none is stored; `str` says where it is."""

    def load(self) -> str: ...
    def save(self, cursor: str) -> None: ...


class FileCheckpoint:
    """A cursor in a file, which is replaced as a whole: a crash leaves the old one or the new one."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def __str__(self) -> str:
        return str(self._path)

    def load(self) -> str:
        try:
            # what is damaged is refused by whoever reads the cursor
            return self._path.read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            return ""

    def save(self, cursor: str) -> None:
        new = self._path.with_name(f"{self._path.name}.new")
        with new.open("w", encoding="ascii") as file:
            file.write(cursor)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
