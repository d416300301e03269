"""Another version of Bronze: its command, installed from its commit with the packages that it pins.

It is kept in the user's cache, as what is built is, so each version is installed once.
"""

import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

from local.builds import REPOSITORY, Build, ensure
from local.programs import LocalError, log_tail
from local.servers import executable

#: The last version before processes, queue and bucket were scaled out.
BEFORE_SCALE_OUT = "571f9d8558b2b1852f6c85fe91845f6cdd547804"
INSTALL_S_MAX = 600


def has(revision: str) -> bool:
    """Whether this clone has the commit: a shallow one may lack it, and nothing is fetched."""
    return _git("cat-file", "-e", f"{revision}^{{commit}}").returncode == 0


def installed(revision: str) -> Path:
    """The command `bronze` of a commit, a tag or a branch. Raises `LocalError`."""
    found = _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if found.returncode:
        raise LocalError(f"this clone has no commit {revision}")
    commit = found.stdout.decode().strip()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"

    def make(result: Path, log: Path) -> None:
        tree = result.parent / "tree"
        with tarfile.open(fileobj=BytesIO(_git("archive", commit).stdout)) as archive:
            archive.extractall(tree, filter="data")
        pinned = str(tree / "requirements.lock")
        _uv(log, "venv", "--relocatable", "--python", sys.executable, str(result / "venv"))
        into = ("--python", str(result / "venv" / "bin" / "python"), "--constraints", pinned)
        _uv(log, "pip", "install", *into, "--build-constraints", pinned, str(tree))

    return ensure(Build(f"Bronze {commit[:10]}", f"bronze-{commit[:12]}-{python}", make)) / "venv" / "bin" / "bronze"


def _git(*words: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["git", "-C", str(REPOSITORY), *words], capture_output=True, check=False)


def _uv(log: Path, *words: str) -> None:
    with log.open("ab") as output:
        done = subprocess.run(
            [executable("uv"), *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=INSTALL_S_MAX,
            check=False,
        )
    if done.returncode:
        raise LocalError(f"another version could not be installed\n{log_tail(log)}")
