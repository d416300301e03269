"""Whether there are tables is one rule, for `bronze table` and for `bronze retain`; wrong settings are named."""

import pytest

from bronze.errors import Misconfigured
from bronze.servers.iceberg import has_catalog, open_tables
from bronze.settings import Settings


def test_a_catalog_that_is_named_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an objects' table is never left out since pyiceberg's settings are missing."""
    assert not has_catalog(Settings())
    monkeypatch.setenv("BRONZE_TABLE_CATALOG", "mine")
    assert has_catalog(Settings())
    with pytest.raises(Misconfigured, match="PYICEBERG_CATALOG__MINE__URI"):
        open_tables(Settings())
    monkeypatch.delenv("BRONZE_TABLE_CATALOG")
    monkeypatch.setenv("PYICEBERG_CATALOG__BRONZE__URI", "https://catalog.example.com")
    assert has_catalog(Settings())


@pytest.mark.parametrize("uri", ["", "catalog.example.com"])
def test_an_address_that_is_none_is_named(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYICEBERG_CATALOG__BRONZE__URI", uri)
    with pytest.raises(Misconfigured, match="PYICEBERG_CATALOG__BRONZE__URI"):
        open_tables(Settings())
