"""Bad records kept apart, listed, mended and sent again, by the command that operators have."""

import json
import subprocess
from pathlib import Path

from local import servers
from local.machine import limit_s
from tests.system.blackbox import NDJSON, System, until

RUN = "run-of-quarantine"


def bronze(system: System, *arguments: str, code: int = 0) -> str:
    """What `bronze quarantine` prints, with the environment of its users; its errors where it is to fail."""
    outcome = subprocess.run(
        [servers.executable("bronze"), "quarantine", *arguments],
        env={**system.client_env, **system.role("publisher").env},
        capture_output=True,
        text=True,
        timeout=limit_s(60),
        check=False,
    )
    assert outcome.returncode == code, outcome.stderr
    return outcome.stderr if code else outcome.stdout


def test_bad_records_are_mended_and_replayed_once(system: System, mark: str, tmp_path: Path) -> None:
    """The good are stored at once; the bad after mending, under the same run, and once, however often it is asked."""
    good = [b'{"vehicle_id": "%s-%d"}' % (mark.encode(), number) for number in range(3)]
    bad = [b'{"vehicle_id": "%s-bad", "seats": "two"}' % mark.encode(), b'{"vehicle_id": "%s-cut"' % mark.encode()]
    body = b"\n".join([good[0], bad[0], good[1], bad[1], good[2]])
    headers = {"Content_Type": NDJSON, "Bronze_Classification_Id": RUN}
    accepted = system.post("vehicles?on_invalid=quarantine", body, **headers).json()
    assert (accepted["records"], accepted["rejected"]) == (3, 2)

    def status() -> list[str] | None:
        said = system.get(accepted["status_url"]).json()
        return said["quarantine"] if said["status"] == "quarantined" else None

    (key,) = until("the submission is in its place", status)
    assert system.payloads(mark) == sorted(good)
    assert system.body(key).endswith(b"\n".join(bad) + b"\n")

    listed = [json.loads(line) for line in bronze(system, "list", "--source", "vehicles", "--json").splitlines()]
    (ours,) = [one for one in listed if one["key"] == key]
    assert ours["submission_id"] == accepted["submission_id"]
    assert [(one["index"], one["field"], one["kind"]) for one in ours["records"]] == [
        (1, "seats", "schema-violation"),
        (3, None, "malformed-json"),
    ]
    text = bronze(system, "list", "--since", ours["stored_at"][:10])
    assert key in text
    assert "record 1, field seats: Expected `int | null`, got `str`" in text

    file = tmp_path / "mended.ndjson"
    bronze(system, "export", "--submission", accepted["submission_id"], "-o", str(file))
    assert file.read_bytes().splitlines() == bad
    assert "seats" in bronze(system, "replay", key, code=1)
    mended = [bad[0].replace(b'"two"', b"2"), bad[1] + b"}"]
    file.write_bytes(b"\n".join(mended) + b"\n")
    for _ in range(2):
        again = bronze(system, "replay", key, "--file", str(file)).split()[-1]
    assert system.stored(again)["classification_id"] == RUN
    system.fence()
    assert system.payloads(mark) == sorted([*good, *mended])
    assert f"replayed as {again}" in bronze(system, "list", "--source", "vehicles")

    file.write_bytes(mended[0] + b"\n\n")
    assert again in bronze(system, "replay", key, "--file", str(file), code=1)
    assert "is not in quarantine" in bronze(system, "export", f"{key}x", code=1)
