"""Secrets: made once, at random, kept in files that only this user can read.

`make up` keeps one file per secret in its state folder. Compose reads its secrets from `.env` at the top of the
repository; `make secrets` adds those that are missing there.

    python -m local.secret_files

It needs nothing but Python's standard library, so that it runs without the other packages.
"""

import os
import re
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

_TOP = Path(__file__).resolve().parent.parent
#: A setting that compose.yaml requires.
_REQUIRED = re.compile(r"(?<!\$)\$\{(\w+):\?")
_ASSIGNED = re.compile(r"^\s*(?:export\s+)?(\w+)\s*=[ \t]*\S", re.MULTILINE)
#: In all, 256 random bits.
_BYTES = 32


@dataclass(frozen=True)
class SecretFiles:
    """The secrets of one state folder, each made when it is first asked for. Others get the same one, also at once."""

    folder: Path

    def path(self, name: str) -> Path:
        """The file of a secret, whose only content is the secret."""
        path = self.folder / name
        if not path.exists():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            made = _new_file(self.folder, new_secret())
            try:
                os.link(made, path)  # complete or not at all, and never over an existing one
            except FileExistsError:
                pass
            finally:
                made.unlink()
        return path

    def replace(self, name: str, secret: str) -> None:
        """Keeps a secret that something else has made."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _new_file(self.folder, secret).replace(self.folder / name)

    def value(self, name: str) -> str:
        return self.path(name).read_text()


def new_secret() -> str:
    """Letters and digits, so that it needs quotes nowhere."""
    return secrets.token_hex(_BYTES)


def add_required(compose: Path, settings: Path) -> list[str]:
    """Adds the secrets that a compose file requires to a file of settings. Those that it has are kept.

    Returns the names of the added ones. The file is complete at any time, and only this user can read it.
    """
    settings = settings.resolve()
    present = settings.read_text() if settings.exists() else ""
    required = dict.fromkeys(_REQUIRED.findall(compose.read_text()))
    missing = [name for name in required if name not in _ASSIGNED.findall(present)]
    if missing:
        separator = "" if present.endswith("\n") or not present else "\n"
        added = "".join(f"{name}={new_secret()}\n" for name in missing)
        _new_file(settings.parent, present + separator + added).replace(settings)
    settings.chmod(0o600)
    return missing


def _new_file(folder: Path, content: str) -> Path:
    """A file with this content, which only this user can read."""
    descriptor, path = tempfile.mkstemp(dir=folder, prefix=".new-")
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    return Path(path)


def main() -> None:
    files = (_TOP / "compose.yaml", _TOP / "compose.cluster.yaml")
    added = [name for file in files for name in add_required(file, _TOP / ".env")]
    print(f".env has new secrets: {', '.join(added)}" if added else ".env has every secret; nothing was changed")


if __name__ == "__main__":
    main()
