"""Rejected records in quarantine: listed, corrected and replayed with the operators' command."""

import json
import subprocess
from pathlib import Path

from local import servers
from local.machine import limit_s
from tests.system.blackbox import NDJSON, System, until

RUN = "run-of-quarantine"


def bronze(system: System, *arguments: str, code: int = 0) -> str:
    """The output of `bronze quarantine` with its users' environment; its standard error if it should fail."""
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


def test_rejected_records_are_corrected_and_replayed_once(system: System, mark: str, tmp_path: Path) -> None:
    """Valid records are stored at once; rejected records after their correction, with the same classification, and only
    once, even if they are replayed repeatedly.
    """
    good = [b'{"vehicle_id": "%s-%d"}' % (mark.encode(), number) for number in range(3)]
    bad = [b'{"vehicle_id": "%s-bad", "seats": "two"}' % mark.encode(), b'{"vehicle_id": "%s-cut"' % mark.encode()]
    body = b"\n".join([good[0], bad[0], good[1], bad[1], good[2]])
    headers = {"Content_Type": NDJSON, "Bronze_Classification_Id": RUN}
    accepted = system.post("vehicles?on_invalid=quarantine", body, **headers).json()
    assert (accepted["records"], accepted["rejected"]) == (3, 2)

    def status() -> list[str] | None:
        answer = system.get(accepted["status_url"]).json()
        return answer["quarantine"] if answer["status"] == "quarantined" else None

    (key,) = until("the submission is in its place", status)
    assert system.payloads(mark) == sorted(good)
    assert system.body(key).endswith(b"\n".join(bad) + b"\n")

    listed = [json.loads(line) for line in bronze(system, "list", "--source", "vehicles", "--json").splitlines()]
    (quarantined,) = [entry for entry in listed if entry["key"] == key]
    assert quarantined["submission_id"] == accepted["submission_id"]
    assert [(entry["index"], entry["field"], entry["kind"]) for entry in quarantined["records"]] == [
        (1, "seats", "schema-violation"),
        (3, None, "malformed-json"),
    ]
    text = bronze(system, "list", "--since", quarantined["stored_at"][:10])
    assert key in text
    assert "record 1, field seats: Expected `int | null`, got `str`" in text

    file = tmp_path / "mended.ndjson"
    bronze(system, "export", "--submission", accepted["submission_id"], "-o", str(file))
    assert file.read_bytes().splitlines() == bad
    assert "seats" in bronze(system, "replay", "--yes", key, code=1)
    mended = [bad[0].replace(b'"two"', b"2"), bad[1] + b"}"]
    file.write_bytes(b"\n".join(mended) + b"\n")
    for _ in range(2):
        replayed_id = bronze(system, "replay", "--yes", key, "--file", str(file)).split()[-1]
    assert system.stored(replayed_id)["classification_id"] == RUN
    system.fence()
    assert system.payloads(mark) == sorted([*good, *mended])
    assert f"replayed as {replayed_id}" in bronze(system, "list", "--source", "vehicles")

    file.write_bytes(mended[0] + b"\n\n")
    assert replayed_id in bronze(system, "replay", "--yes", key, "--file", str(file), code=1)
    assert "is not in quarantine" in bronze(system, "export", f"{key}x", code=1)
