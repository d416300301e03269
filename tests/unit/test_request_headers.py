"""The texts that a request carries in its headers arrive as they were sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bronze.protocol import request_headers


@pytest.mark.parametrize("text", [" a.ndjson", "a.ndjson ", " ", "  ", " a  b ", "ü 100%\n", ""])
def test_spaces_survive_a_header(text: str) -> None:
    """A client refuses to send white space at the ends of a value, and a server would remove it."""
    value = request_headers.encode(text)
    assert value == value.strip()
    assert request_headers.decode(value) == text


@given(st.text())
def test_any_text_survives_a_header(text: str) -> None:
    value = request_headers.encode(text)
    assert value.isascii()
    assert request_headers.decode(value) == text
