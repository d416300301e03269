"""Tables: how far the Iceberg table of each source has come, what each commit took, and what retention deleted."""

from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries

from grafana import components
from grafana.components import (
    BYTES,
    COUNT,
    COUNTS_PER_S,
    RECORDS_PER_S,
    SECONDS,
    Board,
    PanelInfo,
    Row,
    graph,
    limit_line,
    percentiles,
    query,
    single_value,
    tile,
)
from grafana.promql import RANGE, SOURCE, THRESHOLDS, counted_per_interval, rate, since

_UID = "bronze-tables"
_TABLE = f'job="bronze/table", {SOURCE}'
_DURATIONS = f'bronze_table_commit_duration_seconds{{{_TABLE}, bronze_outcome="success"}}'
_AGES = f"max by (bronze_source) (bronze_table_objects_oldest_age_seconds{{{_TABLE}}})"
_NOT_RUNNING = "bronze table has not reported yet"
_RETAIN = 'job="bronze/retain"'
_RETAINED = f'bronze_retention_last_run_time_seconds{{{_RETAIN}, bronze_outcome="success"}}'
_NO_RETENTION = "bronze retain --every has not reported yet (docs/operations.md)"


def board() -> Board:
    return Board(
        _UID,
        "Tables",
        "The Iceberg table of each source, to which `bronze table` commits the rows of its objects.",
        [
            Row("Are the tables up to date?", [oldest(), newest(), waiting()]),
            Row("Commits", [delivery(), commits(), durations(), records()]),
            Row("Files", [files(), size(), snapshots(), maintenance()]),
            Row(
                "Retention",
                [
                    retained(),
                    retention_age(),
                    retention_runs(),
                    deleted("Objects deleted", "Objects that `bronze retain` deleted from the bucket", "objects"),
                    deleted("Entries removed", "Entries of deleted objects that left the catalog", "entries"),
                    deleted("Rows deleted", "Rows that `bronze retain` deleted from the tables", "rows"),
                ],
            ),
        ],
    )


def oldest() -> Stat:
    info = PanelInfo(
        "Oldest waiting object",
        "Age of the oldest object whose rows are not in its table yet, of the worst source. Red from "
        f"{THRESHOLDS.table_age_s_max / 60:g} minutes on, as the alert.",
        _NOT_RUNNING,
        ["BronzeTableLags", "BronzeTableHalted"],
        explained_by=(_UID, "Waiting for the tables"),
    )
    panel = tile(info, SECONDS, single_value(f"max({_AGES})"), width=6, height=9)
    return panel.thresholds(components.zero_is_good(THRESHOLDS.table_age_s_max))


def newest() -> Stat:
    info = PanelInfo(
        "Last snapshot",
        "Time since the last snapshot of any table. Without new objects there is none.",
        "no snapshot yet",
        explained_by=(_UID, "Commits by outcome"),
    )
    snapshot = since(f"max(bronze_table_snapshot_time_seconds{{{_TABLE}}})")
    return tile(info, SECONDS, single_value(snapshot), width=6, height=9)


def waiting() -> Timeseries:
    info = PanelInfo(
        "Waiting for the tables",
        "Age of the oldest object of each source whose rows are not in its table yet. Between two commits it grows to "
        "BRONZE_TABLE_INTERVAL_S.",
        _NOT_RUNNING,
        ["BronzeTableLags"],
    )
    limit = limit_line(f"vector({THRESHOLDS.table_age_s_max:g})", f"limit: {THRESHOLDS.table_age_s_max:g} s")
    return graph(info, SECONDS, query(_AGES, "{{bronze_source}}"), limit, width=12)


def delivery() -> Timeseries:
    info = PanelInfo(
        "From acceptance to the table",
        "From the acceptance of an object's oldest record to the snapshot that has its rows. With nothing to catch up, "
        "at most BRONZE_FLUSH_AGE_S + BRONZE_TABLE_INTERVAL_S and a commit. Each exemplar links to the trace of its "
        "commit.",
        "no commit in this time range",
    )
    durations = f"bronze_table_delivery_duration_seconds{{{_TABLE}}}"
    return graph(info, SECONDS, *percentiles(durations, (0.5, 0.95), exemplars=True), width=12)


def commits() -> Timeseries:
    info = PanelInfo(
        "Commits by outcome",
        "Commits per second. *conflict*: another commit came first, and it was tried again; *unavailable*: the next "
        "commit finds out whether it was made; *halted*: nothing is committed until you act.",
        _NOT_RUNNING,
        ["BronzeTableHalted"],
    )
    succeeded = rate(f'bronze_table_commits_total{{{_TABLE}, bronze_outcome="success"}}')
    failed = rate(f'bronze_table_commits_total{{{_TABLE}, bronze_outcome="failure"}}', "error_type")
    return graph(info, COUNTS_PER_S, query(succeeded, "success"), query(f"{failed} > 0", "{{error_type}}"), width=12)


def durations() -> Timeseries:
    info = PanelInfo(
        "Duration of a commit",
        "From reading the table to its new snapshot, with reading the objects in between. Each exemplar links to the "
        "trace of its commit, which links to the uploads of the objects.",
        "no commit in this time range",
    )
    return graph(info, SECONDS, *percentiles(_DURATIONS, (0.5, 0.95), exemplars=True), width=12)


def records() -> Timeseries:
    info = PanelInfo("Records committed", "Records per second that became rows of a table.", _NOT_RUNNING)
    return components.by_source(
        graph(
            info,
            RECORDS_PER_S,
            query(rate(f"bronze_table_records_total{{{_TABLE}}}", "bronze_source"), "{{bronze_source}}"),
            width=12,
        )
    )


def files() -> Timeseries:
    info = PanelInfo(
        "Data files",
        "Data files of each table in its last snapshot. Many small files make readers slow.",
        _NOT_RUNNING,
    )
    count = f"max by (bronze_source) (bronze_table_files{{{_TABLE}}})"
    return graph(info, COUNT, query(count, "{{bronze_source}}"), width=12)


def size() -> Timeseries:
    info = PanelInfo("Size of the tables", "Bytes of the data files in the last snapshot.", _NOT_RUNNING)
    bytes_now = f"max by (bronze_source) (bronze_table_size_bytes{{{_TABLE}}})"
    return graph(info, BYTES, query(bytes_now, "{{bronze_source}}"), width=12)


def snapshots() -> Timeseries:
    info = PanelInfo(
        "Snapshots",
        "Snapshots of each table. Each commit reads and writes the metadata of all of them, so many make it slow: the "
        "maintenance keeps those of the last hour, and one per hour before.",
        _NOT_RUNNING,
    )
    count = f"max by (bronze_source) (bronze_table_snapshots{{{_TABLE}}})"
    return graph(info, COUNT, query(count, "{{bronze_source}}"), width=12)


def maintenance() -> Timeseries:
    info = PanelInfo(
        "Runs of the maintenance",
        "How often the tables were compacted and their snapshots expired in each interval of the graph, and errors. "
        "The next run does what is left.",
        _NOT_RUNNING,
        ["BronzeTableMaintenanceFails"],
    )
    return _runs(info, "bronze_table_maintenance_runs_total", _TABLE)


def retained() -> Stat:
    info = PanelInfo(
        "Last retention",
        "Time since the last complete run of `bronze retain --every`.",
        "no complete run in the range",
        ["BronzeRetentionFails"],
        explained_by=(_UID, "Since the last retention"),
    )
    return tile(info, SECONDS, single_value(since(f"max(last_over_time({_RETAINED}[{RANGE}]))")), width=6, height=9)


def retention_age() -> Timeseries:
    info = PanelInfo(
        "Since the last retention",
        "Time since the last complete run of `bronze retain --every`. It grows to the interval of the runs, and a run.",
        _NO_RETENTION,
        ["BronzeRetentionFails"],
    )
    intervals = f"{THRESHOLDS.retention_intervals_max:g}"
    interval = f"max(bronze_retention_interval_seconds{{{_RETAIN}}})"
    limit = limit_line(f"{intervals} * {interval}", f"limit: {intervals} intervals")
    return graph(info, SECONDS, query(since(f"max({_RETAINED})"), "since the last run"), limit, width=6)


def retention_runs() -> Timeseries:
    info = PanelInfo(
        "Runs of retention",
        "Runs of `bronze retain --every` in each interval of the graph, and errors. A run that fails is repeated after "
        "five minutes, and does what is left.",
        _NO_RETENTION,
        ["BronzeRetentionFails"],
    )
    return _runs(info, "bronze_retention_runs_total", _RETAIN)


def deleted(title: str, meaning: str, what: str) -> Timeseries:
    """The graph of a kind of things that retention deletes."""
    info = PanelInfo(title, f"{meaning}, in each interval of the graph.", _NO_RETENTION)
    series = counted_per_interval(f"bronze_retention_{what}_total{{{_RETAIN}, {SOURCE}}}", "bronze_source")
    return components.by_source(components.bars(graph(info, COUNT, query(series, "{{bronze_source}}"), width=8)))


def _runs(info: PanelInfo, counter: str, labels: str) -> Timeseries:
    """How often something ran, by outcome and error."""
    runs = f"{counter}{{{labels}, bronze_outcome="
    succeeded = counted_per_interval(f'{runs}"success"}}', "bronze_outcome")
    failed = counted_per_interval(f'{runs}"failure"}}', "error_type")
    queries = [query(succeeded, "success"), query(f"({failed}) > 0", "{{error_type}}")]
    return components.bars(graph(info, COUNT, *queries, width=12))
