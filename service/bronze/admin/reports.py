"""What the commands of an operator print when they are done."""

import sys

from bronze.admin.rebuild_catalog import BucketContents


def report_lanes(number: int, *, changed: bool) -> None:
    lanes = "1 lane" if number == 1 else f"{number} lanes"
    if changed:
        print(f"Each source has {lanes} now; all that was in the old ones is stored.")
    else:
        print(f"Each source has {lanes} already; nothing was changed.")
    print(f"Set BRONZE_LANES={number} and start the API and the consumers anew: with another number they refuse to.")


def report_rebuilt(found: BucketContents, *, dry_run: bool) -> None:
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(
        f"{found.objects:,} objects of {len(found.ends):,} lanes in the bucket: {found.records:,} records of "
        f"{found.submissions:,} submissions; each chain is whole."
    )
    if found.others:
        print(f"{found.others:,} keys below the prefix are none of ours, and were left alone.")
    if dry_run:
        print("Nothing was changed. Without --dry-run, the catalog is replaced by one of these objects.")
    else:
        print(
            f"The catalog is made anew: {found.objects:,} entries, {found.identities:,} identities, which are kept "
            "from now on for as long as new ones. Identities whose time was over are not there again."
        )
