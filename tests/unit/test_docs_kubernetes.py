"""The table of docs/kubernetes.md has the chart's values."""

import re

import yaml

from docs import kubernetes


def test_the_page_is_in_sync() -> None:
    text = kubernetes.PAGE.read_text(encoding="utf-8")
    assert kubernetes.page(text) == text, f"run {kubernetes.WRITE}"


def test_every_value_has_a_row() -> None:
    names = set(re.findall(r"^\| `([\w.]+)` \|", kubernetes.table(kubernetes.VALUES.read_text()), re.MULTILINE))
    paths: list[tuple[str, object]] = list(yaml.safe_load(kubernetes.VALUES.read_text()).items())
    while paths:
        path, value = paths.pop()
        if path in names and isinstance(value, dict):
            nested = {f"{path}.{name}": part for name, part in value.items()}
            if nested.keys() & names:
                paths += nested.items()
        assert path in names
