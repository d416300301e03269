"""Content encodings: any pieces give the body, what is not whole is refused, and a bomb costs its bound."""

import gzip
import os
import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bronze.errors import Refused
from bronze.records import sources
from bronze.records.encodings import ENCODINGS, Gzip, Zstd
from bronze.records.json_intake import JsonIntake

CUTS = st.lists(st.integers(0, 2_000), max_size=20)


@dataclass(frozen=True)
class Encoding:
    name: str
    encode: Callable[[bytes], bytes]
    decoder: type[Gzip | Zstd]

    def __str__(self) -> str:
        return self.name


EACH = [Encoding("gzip", gzip.compress, Gzip), Encoding("zstd", zstandard.compress, Zstd)]


def split(body: bytes, at: Iterable[int]) -> Iterator[bytes]:
    ends = sorted({min(end, len(body)) for end in at} | {len(body)})
    return (body[start:end] for start, end in zip([0, *ends], ends, strict=False))


def test_each_encoding_that_is_taken_is_tested_here() -> None:
    assert set(ENCODINGS) - {"identity"} == {one.name for one in EACH}


@pytest.mark.parametrize("encoding", EACH, ids=str)
@given(members=st.lists(st.binary(max_size=200), min_size=1, max_size=4), cuts=CUTS)
def test_any_pieces_and_members_are_the_body(encoding: Encoding, members: list[bytes], cuts: list[int]) -> None:
    decoder = encoding.decoder()
    encoded = b"".join(map(encoding.encode, members))
    decoded = b"".join(out for piece in split(encoded, cuts) for out in decoder.feed(piece))
    decoder.finish()
    assert decoded == b"".join(members)


@pytest.mark.parametrize("encoding", EACH, ids=str)
@given(end=st.integers(1, 10_000), cuts=CUTS)
def test_what_ends_early_is_refused(encoding: Encoding, end: int, cuts: list[int]) -> None:
    encoded = encoding.encode(string.printable.encode() * 20)
    decoder = encoding.decoder()
    for piece in split(encoded[: min(end, len(encoded) - 1)], cuts):
        list(decoder.feed(piece))
    with pytest.raises(Refused, match=f"not whole {encoding}") as refused:
        decoder.finish()
    assert (refused.value.status, refused.value.code) == (400, "corrupt-encoding")


@pytest.mark.parametrize("encoding", EACH, ids=str)
def test_what_is_not_encoded_is_refused(encoding: Encoding) -> None:
    with pytest.raises(Refused, match=f"not whole {encoding}"):
        list(encoding.decoder().feed(b'{"vehicle_id":"a"}'))


@pytest.mark.parametrize("encoding", EACH, ids=str)
def test_a_bomb_is_met_after_one_step(encoding: Encoding) -> None:
    """A bomb costs its bound and no more, whatever it would inflate to."""
    bomb = encoding.encode(b"\n" * 2**26)
    limit = 2**20
    intake = JsonIntake(sources.built_in()["vehicles"], body_bytes_max=limit, spool_memory_bytes_max=2**18)
    inflated: list[int] = []

    def feed() -> None:
        for piece in encoding.decoder().feed(bomb):
            inflated.append(len(piece))
            intake.lines(piece)

    with pytest.raises(Refused) as refused:
        feed()
    intake.close()
    assert (refused.value.status, refused.value.code) == (413, "body-too-large")
    assert refused.value.members == {"limit": limit}
    assert max(inflated) <= encoding.decoder.STEP_BYTES
    assert sum(inflated) <= limit + encoding.decoder.STEP_BYTES


def test_zstd_within_a_window_of_8_mib_is_taken_and_beyond_it_refused() -> None:
    """RFC 8878 asks each decoder for 8 MiB, and a window is memory that a sender has us hold."""
    body = os.urandom(2**10)
    for window_log, taken in ((23, True), (24, False)):
        parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=window_log)
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        encoded = compressor.compress(body) + compressor.flush()
        if taken:
            assert b"".join(Zstd().feed(encoded)) == body
        else:
            with pytest.raises(Refused, match="window is larger than 8388608 bytes; compress without --long"):
                list(Zstd().feed(encoded))
