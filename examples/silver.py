"""A Silver table in DuckDB: results joined with failures by their classification_id, each row exactly once.

    python examples/silver.py silver.duckdb           # follows new objects, until Ctrl-C
    python examples/silver.py silver.duckdb --once    # up to the last object that exists now

One transaction adds the rows of a page of the feed, updates the join, and stores the cursor. So whenever this program
is killed, rows and cursor agree, and it continues where it was. The bucket is that of BRONZE_BUCKET and AWS_*, the API
that of BRONZE_API_URL and BRONZE_API_KEY.
"""

import argparse

import duckdb

from bronze.client import Client, FeedPage, RemovalEvent

#: What is kept of each source, besides the keys of each row.
COLUMNS = {
    "results": ["arrived_at", "duration_min", "distance_km"],
    "failures": ["reason", "failed_on", "detail"],
}
KEYS = ["file_path", "_submission_id", "_record_index", "classification_id", "vehicle_id"]
TABLES = """
CREATE TABLE IF NOT EXISTS progress (cursor VARCHAR NOT NULL);
CREATE TABLE IF NOT EXISTS results (
    file_path VARCHAR, _submission_id VARCHAR, _record_index BIGINT, classification_id VARCHAR, vehicle_id VARCHAR,
    arrived_at TIMESTAMPTZ, duration_min DOUBLE, distance_km DOUBLE
);
CREATE TABLE IF NOT EXISTS failures (
    file_path VARCHAR, _submission_id VARCHAR, _record_index BIGINT, classification_id VARCHAR, vehicle_id VARCHAR,
    reason VARCHAR, failed_on DATE, detail VARCHAR
);
CREATE TABLE IF NOT EXISTS late_and_failed (
    classification_id VARCHAR, vehicle_id VARCHAR, arrived_at TIMESTAMPTZ, duration_min DOUBLE, reason VARCHAR,
    detail VARCHAR
);
"""


def add(db: duckdb.DuckDBPyConnection, bronze: Client, page: FeedPage) -> None:
    """Add a page of the feed, in the transaction of its cursor."""
    db.execute("CREATE OR REPLACE TEMP TABLE changed (classification_id VARCHAR)")
    for source, columns in COLUMNS.items():
        objects = [event for event in page.objects if event.source == source and not event.removed]
        if objects:
            db.register("new", bronze.read_objects(objects, KEYS + columns))
            db.execute(f"INSERT INTO {source} BY NAME SELECT * FROM new")
            db.execute("INSERT INTO changed SELECT classification_id FROM new")
            db.unregister("new")
    for event in page.events:
        if isinstance(event, RemovalEvent):
            removed = f"FROM {event.source} WHERE file_path = $1"
            db.execute(f"INSERT INTO changed SELECT classification_id {removed}", [event.file_path])
            db.execute(f"DELETE {removed}", [event.file_path])
    db.execute("DELETE FROM late_and_failed WHERE classification_id IN (SELECT classification_id FROM changed)")
    db.execute(
        """
        INSERT INTO late_and_failed
        SELECT classification_id, results.vehicle_id, arrived_at, duration_min, reason, detail
        FROM results JOIN failures USING (classification_id)
        WHERE classification_id IN (SELECT classification_id FROM changed)
        """
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", help="the file of the DuckDB database")
    parser.add_argument("--once", action="store_true", help="end after the last object that exists now")
    args = parser.parse_args()
    with duckdb.connect(args.database) as db, Client(retry_for_s=600) as bronze:
        db.execute(TABLES)
        stored = db.execute("SELECT cursor FROM progress").fetchone()
        cursor = stored[0] if stored else ""
        for page in bronze.follow(cursor, sources=list(COLUMNS), wait_s=0 if args.once else 30):
            db.begin()
            add(db, bronze, page)
            db.execute("DELETE FROM progress")
            db.execute("INSERT INTO progress VALUES ($1)", [page.cursor])
            db.commit()
            counts = db.execute(
                "SELECT (SELECT count(*) FROM results), (SELECT count(*) FROM failures), count(*) FROM late_and_failed"
            ).fetchone()
            print("results, failures, joined:", counts, flush=True)


if __name__ == "__main__":
    main()
