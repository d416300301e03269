"""docs/telemetry.md is in sync with the schema, the rules and the dashboards."""

from pathlib import Path

import pytest

from bronze.telemetry.schema import registry
from docs import telemetry
from grafana import boards
from prometheus.rules import readers


def test_the_page_is_in_sync() -> None:
    assert telemetry.PAGE.read_text(encoding="utf-8") == telemetry.page()


def test_check_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so also if the page is missing, and writes nothing."""
    monkeypatch.setattr(telemetry, "PAGE", tmp_path / "telemetry.md")
    monkeypatch.setattr("sys.argv", ["telemetry", "--check"])
    with pytest.raises(SystemExit, match=r"run python -m docs\.telemetry"):
        telemetry.main()
    assert not telemetry.PAGE.exists()


def test_every_signal_and_attribute_is_on_the_page() -> None:
    page = telemetry.page()
    known = registry()
    for metric in known.metrics.values():
        assert f"### {metric.name}\n" in page
        assert f"`{metric.prometheus_name}`" in page
    for name in (*(span.name for span in known.spans.values()), *known.events, *known.attributes):
        if not name.startswith(
            ("service.", "deployment.")
        ):  # attributes of the resource, described in the introduction
            assert f"`{name}`" in page, name


@pytest.mark.parametrize("name", registry().metrics)
def test_a_metric_that_no_rule_reads_says_so(name: str) -> None:
    """A metric that rules read names them."""
    entry = telemetry.page().partition(f"### {name}\n")[2].partition("\n#")[0]
    read_by = readers(registry().metrics[name].prometheus_name)
    assert ("| read by | no rule |" in entry) == (not read_by)
    assert all(reader in entry for reader in read_by)


@pytest.mark.parametrize("name", registry().metrics)
def test_a_metric_that_no_panel_shows_says_so(name: str) -> None:
    """A metric that panels show names them."""
    entry = telemetry.page().partition(f"### {name}\n")[2].partition("\n#")[0]
    shown_on = boards.readers(registry().metrics[name].prometheus_name)
    assert ("| shown on | no panel |" in entry) == (not shown_on)
    assert all(panel in entry for panels in shown_on.values() for panel in panels)
