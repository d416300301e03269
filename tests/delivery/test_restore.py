"""Everything but the bucket is lost, and comes back from it."""

from pathlib import Path

from tests.restore import rehearse

OBJECTS = 60
SEED = 9


async def test_the_bucket_alone_restores_the_system(tmp_path: Path) -> None:
    """The steps of docs/delivery.md, "Backup and restore", after the queue, the catalog and the API's index are gone:
    what was stored has the same answers, what waited is sent again, new records are accepted, and each is stored once.
    """
    said: list[str] = []
    done = await rehearse(tmp_path, OBJECTS, SEED, said.append)
    assert done.verdict, f"logs in {tmp_path}: {done.verdict}"
    assert done.changed == []
    assert done.found is not None
    assert done.objects >= OBJECTS
    assert len({entry.epoch for entry in done.found.entries if entry.source == "vehicles"}) == 2
