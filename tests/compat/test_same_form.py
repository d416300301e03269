"""The data that this version writes has the same form as that of the recorded version."""

import difflib
from collections.abc import Sequence
from dataclasses import replace

import pytest

from local.servers import S3Account
from tests.compat import state
from tests.compat.changed import as_changed, without_added, without_canary
from tests.compat.conftest import Written, read
from tests.compat.form import form
from tests.compat.record import record
from tests.compat.scenario import BUCKET, SETTINGS
from tests.compat.site import Site

SHOWN_LINES_MAX = 60


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory, s3_account: S3Account) -> Written:
    """The same scenario, played with this version."""
    root = tmp_path_factory.mktemp("now")
    with Site(root, replace(s3_account, bucket=BUCKET), SETTINGS) as site:
        state.write_bucket(site.s3, BUCKET, {})
        record(site, root / "written")
    return read(root / "written")


def differences(before: Sequence[str], after: Sequence[str]) -> str:
    diff = list(difflib.unified_diff(before, after, "as recorded", "now", lineterm="", n=1))
    return "\n".join(line[:600] for line in diff[:SHOWN_LINES_MAX])


def test_what_is_written_has_the_form_that_was_recorded(written: Written, now: Written) -> None:
    """Messages, catalog entries, identities, claims, objects, quarantine, configurations and answers have the same
    fields in the same order with the same values, except ids, times and values derived from them.
    """
    different = differences(form(written, as_changed), form(without_canary(now), without_added))
    assert not different, different


def test_metrics_and_spans_keep_the_names_that_were_recorded(written: Written, now: Written) -> None:
    """Dashboards, alerts and saved queries of users go by names: those of families, labels, spans and attributes.

    What is new is in nobody's way, but for a new label: it makes other series of the ones that are there.
    """
    before, after = written["telemetry"], now["telemetry"]
    for role, families in before["metrics"].items():
        kept = {name: after["metrics"][role].get(name) for name in families}
        assert kept == families, role
    for span, parts in before["spans"].items():
        missing = {what: set(names) - set(after["spans"][span][what]) for what, names in parts.items()}
        assert not any(missing.values()), (span, missing)
