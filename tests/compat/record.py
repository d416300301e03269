"""Records what this version writes: `python -m tests.compat.record`.

The folder `written/` is from the version that its README names. Later versions are tested with it, and do not write it.
"""

import json
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from local import programs, servers
from local.programs import start
from tests.compat import scenario, state
from tests.compat.scenario import HERE, Played, Player
from tests.compat.site import Api, Site, until
from tests.compat.telemetry import Heard

WRITTEN = HERE / "written"
#: The data on disk of the queue, an API and a watching publisher.
DISKS = ("nats/jetstream", "view", "watched")


def answers(site: Site, played: Played, api: Api) -> dict[str, Any]:
    """The answers of a system about its data."""
    bucket = state.read_bucket(site.s3, site.account.bucket)
    objects = sorted(key for key in bucket if key.endswith(".parquet"))
    quarantine = [key for key in bucket if key.endswith((".message", ".rejected"))]
    known = [answer for _, answer in (*played.stored, *played.waiting)]
    asked = [("submission_id", answer["submission_id"]) for _, answer in played.stored]
    asked += [("classification_id", run) for run in ("run of ü", "one", "two", "columns")]
    asked += [("trace_id", played.stored[0][1]["trace_id"]), ("file_path", objects[-1])]
    until("the view has all of it", lambda: api.get("/v1/lineage", file_path=objects[-1])["objects"])
    return {
        "accepted": known,
        "said": played.said,
        "submissions": [api.get(one["status_url"]) for one in known],
        "objects": [api.get(f"/v1/objects/{key}") for key in objects],
        "lineage": [[name, value, without_lag(api.get("/v1/lineage", **{name: value}))] for name, value in asked],
        "sources": [api.get("/v1/sources"), *(api.get(f"/v1/sources/{one}/schema") for one in ("readings", "events"))],
        "quarantine": [json.loads(line) for line in site.run("quarantine", "list", "--json").splitlines()],
        "exports": {key: site.run("quarantine", "export", key) for key in quarantine},
    }


def without_lag(chain: dict[str, Any]) -> dict[str, Any]:
    """A lineage without the values that change with time."""
    return {name: value for name, value in chain.items() if name != "lag_s"}


def dumped(value: object, depth: int = 4) -> str:
    """JSON whose outer levels have one line per item, so that people can read it and git can compare it."""
    if depth and isinstance(value, dict) and value:
        items = (f"{json.dumps(name, ensure_ascii=False)}: {dumped(one, depth - 1)}" for name, one in value.items())
        return "{\n" + ",\n".join(items) + "\n}"
    if depth and isinstance(value, list) and value:
        return "[\n" + ",\n".join(dumped(one, depth - 1) for one in value) + "\n]"
    return json.dumps(value, ensure_ascii=False)


def record(site: Site, into: Path) -> None:
    """Play the scenario with a new queue and bucket, and record the data that was written."""
    into.mkdir(parents=True, exist_ok=True)

    def keep(name: str, what: object) -> None:
        (into / f"{name}.json").write_text(dumped(what) + "\n")

    with start(site.queue(), site.root / "nats.log"), Heard() as heard:
        player = Player(site, heard)
        player.play(lambda played, api: keep("answers", answers(site, played, api)))
        keep("queue", state.read_queue(site.nats_port))
        keep("bucket", state.read_bucket(site.s3, site.account.bucket))
        keep("telemetry", heard.form())
    with tarfile.open(into / "disks.tar.xz", "w:xz", preset=9) as archive:
        for name in DISKS:
            archive.add(site.root / name, name, filter=_nobodys)


def _nobodys(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        account = servers.s3_account(root / "s3", programs.free_ports(servers.SEAWEEDFS_PORTS), scenario.BUCKET)
        with (
            start(servers.seaweedfs(root / "s3", account), root / "s3.log"),
            Site(root, account, scenario.SETTINGS) as site,
        ):
            record(site, WRITTEN)
    return 0


if __name__ == "__main__":
    sys.exit(main())
