"""docs/settings.md is in sync with the settings."""

from bronze.settings import Settings
from docs import settings


def test_the_page_is_in_sync() -> None:
    assert settings.PAGE.read_text(encoding="utf-8") == settings.page()


def test_every_setting_is_on_the_page_with_a_description() -> None:
    page = settings.page()
    for name, field in Settings.model_fields.items():
        assert f"| `BRONZE_{name.upper()}` |" in page
        assert field.description, name
