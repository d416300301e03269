"""`python -m grafana` writes the dashboards; with `--check` it writes nothing, and fails if one is out of sync."""

import argparse
import sys

from grafana import boards

WRITE = "python -m grafana"


def main() -> None:
    parser = argparse.ArgumentParser(prog=WRITE, description="Write the Grafana dashboards.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is out of sync")
    if not parser.parse_args().check:
        for name, text in boards.files().items():
            (boards.FOLDER / name).write_text(text, encoding="utf-8")
    elif different := boards.out_of_sync():
        sys.exit(f"grafana/provisioning/dashboards/: {', '.join(different)} out of sync with grafana/*.py: run {WRITE}")


if __name__ == "__main__":
    main()
