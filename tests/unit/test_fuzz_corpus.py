"""The corpus of `make fuzz-intake`: each input, and each that the fuzzer starts from, holds to the invariants."""

import pytest

from tests.fuzz import corpus
from tests.fuzz.invariants import TARGETS, check
from tests.fuzz.seeds import seeds


@pytest.mark.parametrize("target", TARGETS)
def test_each_input_of_the_corpus_is_refused_or_becomes_its_rows(target: str) -> None:
    for name, data in [*corpus.inputs(target), *((str(number), data) for number, data in enumerate(seeds(target)))]:
        try:
            check(target, data)
        except BaseException as error:
            error.add_note(f"tests/fuzz/corpus/{target}/{name}.b64")
            raise


def test_the_corpus_is_small() -> None:
    assert sum(file.stat().st_size for file in corpus.CORPUS.rglob("*.b64")) <= corpus.BYTES_MAX
