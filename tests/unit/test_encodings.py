"""Content encodings: any pieces give the body, incomplete bodies are refused, and decompression bombs are bounded."""

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


TESTED = [Encoding("gzip", gzip.compress, Gzip), Encoding("zstd", zstandard.compress, Zstd)]


def split(body: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    ends = sorted({min(end, len(body)) for end in cuts} | {len(body)})
    return (body[start:end] for start, end in zip([0, *ends], ends, strict=False))


def test_every_supported_encoding_is_tested() -> None:
    assert set(ENCODINGS) - {"identity"} == {encoding.name for encoding in TESTED}


@pytest.mark.parametrize("encoding", TESTED, ids=str)
@given(members=st.lists(st.binary(max_size=200), min_size=1, max_size=4), cuts=CUTS)
def test_any_pieces_and_members_decode_to_the_body(encoding: Encoding, members: list[bytes], cuts: list[int]) -> None:
    decoder = encoding.decoder()
    encoded = b"".join(map(encoding.encode, members))
    decoded = b"".join(out for piece in split(encoded, cuts) for out in decoder.feed(piece))
    decoder.finish()
    assert decoded == b"".join(members)


@pytest.mark.parametrize("encoding", TESTED, ids=str)
@given(end=st.integers(1, 10_000), cuts=CUTS)
def test_an_incomplete_body_is_refused(encoding: Encoding, end: int, cuts: list[int]) -> None:
    encoded = encoding.encode(string.printable.encode() * 20)
    decoder = encoding.decoder()
    for piece in split(encoded[: min(end, len(encoded) - 1)], cuts):
        list(decoder.feed(piece))
    with pytest.raises(Refused, match=f"The body is not a complete {encoding} stream") as refused:
        decoder.finish()
    assert (refused.value.status, refused.value.code) == (400, "corrupt-encoding")


@pytest.mark.parametrize("encoding", TESTED, ids=str)
def test_a_body_without_the_encoding_is_refused(encoding: Encoding) -> None:
    with pytest.raises(Refused, match=f"The body is not a complete {encoding} stream"):
        list(encoding.decoder().feed(b'{"vehicle_id":"a"}'))


@pytest.mark.parametrize("encoding", TESTED, ids=str)
def test_a_decompression_bomb_is_refused_after_one_step(encoding: Encoding) -> None:
    """It costs no more memory than the bound, however large its content is."""
    bomb = encoding.encode(b"\n" * 2**26)
    limit = 2**20
    intake = JsonIntake(sources.built_in()["vehicles"], body_bytes_max=limit, spool_memory_bytes_max=2**18)
    decoded_sizes: list[int] = []

    def feed() -> None:
        for piece in encoding.decoder().feed(bomb):
            decoded_sizes.append(len(piece))
            intake.add_lines(piece)

    with pytest.raises(Refused) as refused:
        feed()
    intake.close()
    assert (refused.value.status, refused.value.code) == (413, "body-too-large")
    assert refused.value.members == {"limit": limit, "setting": "BRONZE_BODY_BYTES_MAX"}
    assert max(decoded_sizes) <= encoding.decoder.STEP_BYTES
    assert sum(decoded_sizes) <= limit + encoding.decoder.STEP_BYTES


def test_a_zstd_window_of_more_than_8_mib_is_refused() -> None:
    """RFC 8878 asks decoders to support 8 MiB; a larger window would let a sender use more of the API's memory."""
    body = os.urandom(2**10)
    for window_log, accepted in ((23, True), (24, False)):
        parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=window_log)
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        encoded = compressor.compress(body) + compressor.flush()
        if accepted:
            assert b"".join(Zstd().feed(encoded)) == body
        else:
            with pytest.raises(Refused, match="window is larger than 8388608 bytes; compress it without --long"):
                list(Zstd().feed(encoded))


@given(cuts=CUTS)
def test_a_frame_with_less_than_it_states_is_refused_in_any_pieces(cuts: list[int]) -> None:
    """Its last block is empty: the library finds the error only if the frame comes as a whole."""
    frame = b"(\xb5/\xfd \xff\x01\x00\x00"
    decoder = Zstd()
    pieces = split(frame, cuts)
    with pytest.raises(Refused, match="zstd"):
        b"".join(out for piece in pieces for out in decoder.feed(piece))


@pytest.mark.parametrize("blocks", [b"\x05\x00\x00", b"\x00" * 9 + b"\x03\x00\x00\x88"])
@given(cuts=CUTS)
def test_a_malformed_frame_without_content_is_decoded_alike_in_any_pieces(blocks: bytes, cuts: list[int]) -> None:
    def refused(pieces: Iterable[bytes]) -> bool:
        decoder = Zstd()
        try:
            assert b"".join(out for piece in pieces for out in decoder.feed(piece)) == b""
            decoder.finish()
        except Refused:
            return True
        return False

    frame = b"(\xb5/\xfd \x00" + blocks
    assert refused(split(frame, cuts)) == refused([frame])


@given(cuts=CUTS)
def test_frames_that_decoders_skip_are_skipped(cuts: list[int]) -> None:
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    decoder = Zstd()
    body = skippable + zstandard.compress(b"body") + skippable
    assert b"".join(out for piece in split(body, cuts) for out in decoder.feed(piece)) == b"body"
    decoder.finish()
