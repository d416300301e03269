"""Writes the table of docs/kubernetes.md, from the chart's values and their comments: `python -m docs.kubernetes`."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parent / "kubernetes.md"
VALUES = PAGE.parents[1] / "charts" / "bronze" / "values.yaml"
WRITE = "python -m docs.kubernetes"

_TABLE = re.compile(r"(?<=<!-- values -->\n)(.*?)(?=<!-- end of values -->)", re.DOTALL)
_VALUE = re.compile(r"^(?P<indent> *)(?P<name>\w+):(?: (?P<default>[^#\s].*?))?(?: # (?P<meaning>.*))?$", re.MULTILINE)


def page(text: str) -> str:
    """The page with the present table."""
    return _TABLE.sub(lambda _: table(VALUES.read_text(encoding="utf-8")), text)


def table(values: str) -> str:
    path: list[str] = []
    rows = ["| value | default | meaning |", "|---|---|---|"]
    for found in _VALUE.finditer(values):
        path = [*path[: len(found["indent"]) // 2], found["name"]]
        default = f"`{found['default']}`" if found["default"] else ""
        rows.append(f"| `{'.'.join(path)}` | {default} | {found['meaning'] or ''} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
