"""From a clone to the first stored record and to all of the evidence, on empty caches: `make first-record`.

The repository's last commit is cloned into a new folder with its own home directory, so that neither packages nor
modules nor builds are there. Then it does what a new user does: `make up`. Meanwhile a record is sent until the API
accepts it. At the end everything is stopped and deleted.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from local.builds import REPOSITORY
from local.programs import LOOPBACK, PORT_VARIABLE
from local.stack import Ports
from local.watch import leave_nothing

POLL_S = 0.2
RECORD = b'{"vehicle_id": "N14228", "seats": 149}\n'


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with leave_nothing(), tempfile.TemporaryDirectory(prefix="bronze-first-record-") as folder:
        clone = Path(folder) / "clone"
        ports = Ports.free()
        env = _environment(Path(folder) / "home", ports)
        began = time.monotonic()
        subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
        log = Path(folder) / "output"
        with log.open("wb") as output:
            up = subprocess.Popen(
                ["make", "up"], cwd=clone, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            _first_record(f"http://{LOOPBACK}:{ports.api}", up, began)
            code = up.wait()
            print(f"evidence after {time.monotonic() - began:.0f} s, exit code {code}")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(up.pid, signal.SIGTERM)  # if it still runs
            up.wait()
            subprocess.run(["make", "down"], cwd=clone, env=env, stdout=subprocess.DEVNULL, check=False)
            print(log.read_text())
            subprocess.run(["chmod", "-R", "u+w", folder], check=False)  # Go's modules are read-only
    return code


def _environment(home: Path, ports: Ports) -> Mapping[str, str]:
    """The environment of a user with an empty home directory, on these ports: no cache is used."""
    home.mkdir()
    caches = re.compile(
        r"XDG_\w+|GO(PATH|CACHE|MODCACHE)|(UV|PIP)_CACHE_DIR|BRONZE_(?!LOCAL_STARTED_BY)\w+|VIRTUAL_ENV"
    )
    kept = {name: value for name, value in os.environ.items() if not caches.fullmatch(name)}
    makes = {name: value for name, value in kept.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    chosen = {f"{PORT_VARIABLE}{name.upper()}": str(port) for name, port in asdict(ports).items()}
    return {**makes, **chosen, "HOME": str(home)}


def _first_record(url: str, up: "subprocess.Popen[bytes]", began: float) -> None:
    """Prints when a record is accepted, and when it is stored, unless `make up` ends before."""
    status_url = None
    while up.poll() is None:
        with suppress(OSError, urllib.error.URLError):
            if status_url is None:
                headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": "first"}
                request = urllib.request.Request(f"{url}/v1/ingest/vehicles", RECORD, headers)  # noqa: S310  ours
                status_url = _answer(request)["status_url"]
                print(f"first record accepted after {time.monotonic() - began:.0f} s", flush=True)
            elif _answer(urllib.request.Request(url + status_url))["status"] == "stored":  # noqa: S310  ours
                print(f"first record stored after {time.monotonic() - began:.0f} s", flush=True)
                return
        time.sleep(POLL_S)


def _answer(request: urllib.request.Request) -> Mapping[str, str]:
    with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310  ours
        answer: Mapping[str, str] = json.loads(response.read())
    return answer


if __name__ == "__main__":
    sys.exit(main())
