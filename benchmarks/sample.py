"""The records that are sent: all flights of 2013, or the committed sample again and again where they cannot be had."""

import subprocess
import sys
from collections.abc import Callable
from itertools import chain, islice, repeat
from pathlib import Path

from local.builds import REPOSITORY
from local.servers import executable

RECORDS = 336_776


def status(folder: Path, say: Callable[[str], None]) -> Path:
    """`RECORDS` status records as NDJSON; made once in the folder."""
    file = folder / "status.ndjson"
    if not file.exists():
        say("making the sample: all flights of 2013")
        command = (executable("uv"), "run", "--python", sys.executable, str(REPOSITORY / "samples" / "extract.py"))
        made = subprocess.run((*command, "--year", str(folder)), capture_output=True, text=True, check=False)
        if made.returncode:
            say(f"it cannot be had ({made.stderr.strip().splitlines()[-1]}): the committed sample again and again")
            repeated(REPOSITORY / "samples" / "status.ndjson", RECORDS, file)
    return file


def repeated(source: Path, records: int, file: Path) -> Path:
    """The first `records` lines of a file that is read again and again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = source.read_bytes().splitlines(keepends=True)
    with file.open("wb") as out:
        out.writelines(islice(chain.from_iterable(repeat(lines)), records))
    return file
