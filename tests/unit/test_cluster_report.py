"""What the API says about the queue's servers, by what STREAM.INFO answers."""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, cast

import pytest

from bronze.api.cluster_report import NAMED_MAX, ClusterReport
from bronze.errors import Outage, Unavailable
from bronze.servers.jetstream import JetStream
from bronze.servers.queue_cluster import AWAY_NS, NatsCluster
from bronze.telemetry.signals import Role
from tests.contract.making import Heard


def follower(name: str, **facts: Any) -> dict[str, Any]:
    return {"name": name, "current": False, "active": 1, **facts}


class Answering:
    """A queue that answers so for each stream; None: not at all."""

    def __init__(self, answers: Mapping[str, Mapping[str, Any] | None], cluster_name: str | None = "n") -> None:
        self.answers = answers
        self.cluster_name = cluster_name

    async def cluster_of(self, stream: str) -> Mapping[str, Any]:
        answer = self.answers[stream]
        if answer is None:
            raise Unavailable(Outage.QUEUE_AWAY, "no answer")
        return answer


@pytest.fixture
def heard() -> Iterator[Heard]:
    heard = Heard(Role.API)
    yield heard
    heard.telemetry.shutdown()


def report(queue: Answering, heard: Heard) -> ClusterReport:
    made = ClusterReport(NatsCluster(cast(JetStream, queue), list(queue.answers)), heard.telemetry.instruments)
    asyncio.run(made.report())
    return made


def replicas(heard: Heard) -> dict[tuple[object, object], float]:
    points = heard.points("bronze.queue.replicas")
    return {
        (point.attributes["bronze.cluster.server"], point.attributes["bronze.replica.state"]): point.value
        for point in points
        if point.value
    }


def test_each_server_is_named_with_what_it_leads_and_what_it_lacks(heard: Heard) -> None:
    """What needs somebody is first. A follower that its leader has not heard of is away."""
    queue = Answering(
        {
            "A": {"leader": "n-1", "replicas": [follower("n-2", current=True), follower("n-3", offline=True)]},
            "B": {"leader": "n-1", "replicas": [follower("n-2", lag=9), follower("n-3", active=AWAY_NS)]},
            "C": {"leader": "n-2", "replicas": [follower("n-1", current=True), follower("n-3", active=0)]},
        }
    )
    said = report(queue, heard).summary()
    assert said == "n-3 is away with 3 streams; n-2 lags with 1 stream; n-1 leads 2 streams; n-2 leads 1 stream"
    assert replicas(heard) == {
        ("n-1", "leader"): 2,
        ("n-1", "current"): 1,
        ("n-2", "leader"): 1,
        ("n-2", "current"): 1,
        ("n-2", "lagging"): 1,
        ("n-3", "away"): 3,
    }
    assert [point.value for point in heard.points("bronze.queue.leaderless")] == [0]


def test_streams_without_a_leader_are_named_and_the_servers_get_zeros(heard: Heard) -> None:
    """Also those that nobody answers for. So no number of before stays."""
    streams = {f"S{number}": {"leader": "n-1", "replicas": []} for number in range(NAMED_MAX + 1)}
    queue = Answering(dict(streams))
    made = report(queue, heard)
    queue.answers = {name: None if number % 2 else {"leader": ""} for number, name in enumerate(streams)}
    asyncio.run(made.report())
    assert made.summary().startswith(f"no leader of {NAMED_MAX + 1} streams (S0, S1, ")
    assert f"S{NAMED_MAX}" not in made.summary()
    assert replicas(heard) == {}
    assert [point.value for point in heard.points("bronze.queue.leaderless")] == [NAMED_MAX + 1]


def test_a_single_server_that_does_not_answer_is_not_a_lost_majority(heard: Heard) -> None:
    with pytest.raises(Unavailable):
        report(Answering({"A": None}, cluster_name=None), heard)
    assert heard.points("bronze.queue.leaderless") == []
