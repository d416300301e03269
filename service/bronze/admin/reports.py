"""The final output of the operator's commands."""

import sys

from bronze.admin.rebuild_catalog import BucketContents


def report_lanes(number: int, *, changed: bool) -> None:
    lanes = "1 lane" if number == 1 else f"{number} lanes"
    if changed:
        print(f"Each source now has {lanes}; all messages of the old lanes are stored.")
    else:
        print(f"Each source already has {lanes}; nothing was changed.")
    print(f"Set BRONZE_LANES={number} and restart the API and the consumers; with another number they refuse to start.")


def report_rebuilt(found: BucketContents, *, dry_run: bool) -> None:
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(
        f"{found.objects:,} objects of {len(found.ends):,} lanes in the bucket: {found.records:,} records of "
        f"{found.submissions:,} submissions. Each lane's chain of objects is complete."
    )
    if found.unknown_keys:
        print(f"{found.unknown_keys:,} keys under the prefix are not objects of Bronze, and were ignored.")
    if dry_run:
        print("Nothing was changed. Without --dry-run, a new catalog of these objects replaces the current catalog.")
    else:
        print(
            f"The catalog is rebuilt: {found.objects:,} entries, {found.identities:,} identities. The retention time "
            "of these identities starts again now. Expired identities were not restored."
        )
