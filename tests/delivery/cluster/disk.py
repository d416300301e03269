"""A disk that can lose power, be slow and be full: the file system of `local/faults/disk`, which covers a folder.

It needs root and /dev/fuse. The mount is only in a namespace of its own, so that nothing remains of it when the last
of its processes has ended, whatever ended it.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import IO, Self

from local import programs
from local.builds import build_fault_tool

AVAILABLE = os.geteuid() == 0 and Path("/dev/fuse").exists() and all(map(shutil.which, ("unshare", "nsenter")))


class Disk:
    """The disk of one server. `command` is the beginning of the command of a process that uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", build_fault_tool("disk"), folder],
            env=programs.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._output.readline() == "mounted\n"

    @property
    def command(self) -> tuple[str, ...]:
        return ("nsenter", f"--mount=/proc/{self._process.pid}/ns/mnt", "--")

    def lose_power(self) -> int:
        """Undo every write that was not synced, while no process uses the disk; returns their number."""
        return self._obey("forget")

    def settle(self) -> None:
        """Count everything as synced, after the folder was replaced."""
        self._obey("settle")

    def slow(self, ms: int) -> None:
        """Let each write and each sync take longer."""
        self._obey(f"slow {ms}")

    def fill(self, *, full: bool) -> None:
        """Refuse writes that make a file longer."""
        self._obey(f"full {full:d}")

    def _obey(self, line: str) -> int:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return int(self._output.readline())

    @property
    def _output(self) -> IO[str]:
        assert self._process.stdout
        return self._process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
