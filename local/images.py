"""Pins the images of compose.yaml and service/Dockerfile by digest: `make pin-images`.

A registry can give another image under the same tag, but not under the same digest. Docker asks the registries, so this
needs Docker with buildx, and the internet.
"""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from local.builds import REPOSITORY
from local.programs import LocalError

FILES = (REPOSITORY / "compose.yaml", REPOSITORY / "service" / "Dockerfile")
#: An image of somebody else, with a tag; the digest behind it may be there from before.
IMAGE = re.compile(
    r"(?m)^(?P<key>\s+image: |ARG PYTHON=)(?P<image>(?!bronze:)[\w./-]+:[\w.-]+)(?:@sha256:[0-9a-f]{64})?"
)
INSPECT_S_MAX = 60


def pin_images(say: Callable[[str], None], files: tuple[Path, ...] = FILES) -> None:
    """Writes the present digest behind the tag of every image. Raises `LocalError` and writes nothing if one fails."""

    def pinned(found: re.Match[str]) -> str:
        name = f"{found['image']}@{_digest(found['image'])}"
        say(name)
        return found["key"] + name

    texts = {file: IMAGE.sub(pinned, file.read_text()) for file in files}
    for file, text in texts.items():
        file.write_text(text)


def _digest(image: str) -> str:
    """Of the list of images for all architectures."""
    command = ["docker", "buildx", "imagetools", "inspect", image, "--format", "{{.Manifest.Digest}}"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=INSPECT_S_MAX, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LocalError(f"the digest of {image} could not be looked up: {error}") from error
    if ended.returncode or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest := ended.stdout.strip()):
        raise LocalError(
            f"the digest of {image} could not be looked up: {ended.stderr.strip() or ended.stdout.strip()}"
        )
    return digest
