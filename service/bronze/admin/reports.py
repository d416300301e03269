"""The final output of the operator's commands."""

import sys
from collections.abc import Sequence

from bronze.admin.rebuild_catalog import BucketContents
from bronze.plurals import counted


def report_initialized(
    lanes: int, created: Sequence[str], protected: Sequence[str], replicated: Sequence[str], replicas: int
) -> None:
    for name in created:
        print(f"Created the stream {name}")
    for name in protected:
        print(f"Protected the stream {name}, which an older version created")
    for name in replicated:
        print(f"Gave the stream {name} {counted(replicas, 'replica')}")
    print(f"The queue has everything that the roles need: {counted(lanes, 'lane')}, the catalog and the keys.")


def report_copied(streams: int, messages: int, addresses: str) -> None:
    print(
        f"Copied {counted(streams, 'stream')} with {counted(messages, 'message')}. The old lanes accept nothing any "
        f"more. Set BRONZE_NATS_URL={addresses} for all roles and commands, and start them."
    )


def report_lanes(number: int, *, changed: bool) -> None:
    lanes = counted(number, "lane")
    if changed:
        print(f"Each source now has {lanes}; all messages of the old lanes are stored.")
    else:
        print(f"Each source already has {lanes}; nothing was changed.")
    print(f"Set BRONZE_LANES={number} and restart the API and the consumers; with another number they refuse to start.")


def report_rebuilt(found: BucketContents, *, dry_run: bool) -> None:
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(
        f"{counted(found.objects, 'object')} of {counted(len(found.ends), 'lane')} in the bucket: "
        f"{counted(found.records, 'record')} of {counted(found.submissions, 'submission')}. Each lane's chain of "
        "objects is complete."
    )
    if found.removed:
        print(f"Removed objects that the catalog lists by their removal records: {found.removed:,}.")
    if found.unknown_keys:
        print(f"Ignored, because not objects of Bronze: {counted(found.unknown_keys, 'key')} under the prefix.")
    if dry_run:
        print("Nothing was changed. Without --dry-run, a new catalog of these objects replaces the current catalog.")
    else:
        print(
            f"The catalog is rebuilt: {counted(found.objects + found.removed, 'entry', 'entries')}, "
            f"{counted(found.identities, 'identity', 'identities')}. The retention time of the identities starts again "
            "now. Expired identities were not restored."
        )
