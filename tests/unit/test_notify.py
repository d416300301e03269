"""What `bronze notify` sends, and that it sends an event until the receiver has taken it."""

import base64
import json
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast
from uuid import NAMESPACE_URL, uuid5

import httpx
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from bronze.client import AsyncClient, FeedPage, FileCheckpoint, ObjectEvent, RemovalEvent
from bronze.errors import Halted, Misconfigured, Outage, Refusal, Refused, Unavailable
from bronze.notify import delivery as delivery_module
from bronze.notify import follower as follower_module
from bronze.notify.delivery import Delivery, Receiver
from bronze.notify.event import cloud_event, event_id
from bronze.notify.follower import Follower
from bronze.notify.notify_telemetry import NotifyTelemetry
from bronze.notify.signature import parse_secrets
from bronze.notify.webhook import Webhook
from bronze.protocol.documents import entry_of
from bronze.settings import Settings
from bronze.telemetry.context import extract, span_context
from bronze.telemetry.signals import Outcome, Role
from bronze.wiring import notify as wiring
from tests import factories
from tests.contract.making import Heard
from tests.inbox import OK, Answer, Inbox, Request, open_inbox

OLD, NEW, OTHER = (f"whsec_{base64.b64encode(bytes([number]) * 24).decode()}" for number in range(3))
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def an_object(number: int) -> ObjectEvent:
    contents = factories.contents(number, number, file_path=f"bronze/source=vehicles/{number}.parquet")
    event = ObjectEvent.of(entry_of(contents), 100)
    return replace(event, traceparent=TRACEPARENT, written_at="2026-11-27T10:00:02.101530+00:00")


def a_removal(number: int) -> RemovalEvent:
    gone = an_object(number)
    return RemovalEvent(
        **{name: getattr(gone, name) for name in ("file_path", "source", "lane", "epoch", "first", "last", "records")},
        bytes=None,
        reason="lost",
        note="a test",
        removed_by="tester",
        recorded_at="2026-11-27T11:00:00Z",
    )


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    with open_inbox() as inbox:
        yield inbox


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as http:
        yield http


def webhook(http: httpx.AsyncClient, url: str, secrets: str = f"{NEW} {OLD}") -> Webhook:
    return Webhook(http, url, parse_secrets(secrets, "-"), "lake", "bronze")


async def test_a_request_is_a_cloud_event_that_its_sdk_reads(inbox: Inbox, http: httpx.AsyncClient) -> None:
    await webhook(http, inbox.url).send(an_object(1))
    await webhook(http, inbox.url).send(a_removal(1))
    stored, removed = (from_http_event(HTTPMessage(request.headers, request.body)) for request in inbox.taken)
    assert stored.get_type() == "bronze.object.stored"
    assert stored.get_source() == "s3://lake/bronze"
    assert stored.get_subject() == "bronze/source=vehicles/1.parquet"
    assert stored.get_extension("traceparent") == TRACEPARENT
    assert cast("dict[str, Any]", stored.get_data())["file_path"] == stored.get_subject()
    assert removed.get_type() == "bronze.object.removed"
    assert cast("dict[str, Any]", removed.get_data())["reason"] == "lost"
    assert stored.get_id() != removed.get_id()


async def test_receivers_that_know_any_of_the_secrets_verify_the_signature(
    inbox: Inbox, http: httpx.AsyncClient
) -> None:
    """So a secret is replaced without a gap. Nobody else verifies it, and no other body has it."""
    await webhook(http, inbox.url).send(an_object(1))
    (request,) = inbox.taken
    for secret in (OLD, NEW):
        assert Verifier(secret).verify(request.body, request.headers)["id"] == request.headers["webhook-id"]
    with pytest.raises(WebhookVerificationError):
        Verifier(OTHER).verify(request.body, request.headers)
    with pytest.raises(WebhookVerificationError):
        Verifier(NEW).verify(request.body.replace(b"lake", b"sea_"), request.headers)


def test_the_id_of_an_object_is_made_from_its_address() -> None:
    event = an_object(1)
    assert event_id(event, "lake") == uuid5(NAMESPACE_URL, "s3://lake/bronze/source=vehicles/1.parquet")
    ids = {event_id(one, "lake") for one in (event, an_object(2), a_removal(1), a_removal(2))}
    assert len(ids) == 4
    assert event_id(replace(event, removed=True), "lake") == event_id(event, "lake")


def test_what_is_not_known_is_left_out() -> None:
    """A CloudEvent has no attributes that are null."""
    document = cloud_event(replace(an_object(1), traceparent=None, written_at=None), "lake", "bronze")
    assert {"time", "traceparent"} & json.loads(document).keys() == set()


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_c2hvcnQ=", "whsec_***", base64.b64encode(bytes(24)).decode()])
def test_a_wrong_secret_is_not_repeated_in_the_error(text: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        parse_secrets(text, "BRONZE_WEBHOOK_SECRETS")
    assert not text.removeprefix("whsec_") or text.removeprefix("whsec_") not in str(refused.value)


def test_a_folder_is_used_by_one_process(tmp_path: Path) -> None:
    """Two would send each event twice, and save the position of each other."""
    wiring._own(tmp_path)
    with pytest.raises(Misconfigured, match="another bronze notify uses"):
        wiring._own(tmp_path)


def test_a_webhook_needs_a_secret() -> None:
    with pytest.raises(ValueError, match="BRONZE_WEBHOOK_URL needs"):
        Settings(webhook_url="http://receiver")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((500, {}), Outage.UNAVAILABLE),
        ((302, {"Location": "/"}), Outage.UNAVAILABLE),
        ((400, {}), Outage.UNAVAILABLE),
        ((401, {}), Outage.DENIED),
        ((429, {"Retry-After": "7"}), Outage.THROTTLED),
        (None, Outage.UNAVAILABLE),
    ],
)
async def test_what_is_no_2xx_is_sent_again(
    inbox: Inbox, http: httpx.AsyncClient, answer: Answer, code: Outage
) -> None:
    inbox.script = [lambda _: answer]
    with pytest.raises(Unavailable) as failed:
        await webhook(http, inbox.url).send(an_object(1))
    assert failed.value.code is code
    assert failed.value.retry_after_s == (7 if answer and "Retry-After" in answer[1] else failed.value.retry_after_s)
    assert "not-for-logs" not in str(failed.value)


async def test_nobody_listens(http: httpx.AsyncClient) -> None:
    with open_inbox() as closed:
        url = closed.url
    with pytest.raises(Unavailable):
        await webhook(http, url).send(an_object(1))


async def test_after_a_410_nothing_is_sent(inbox: Inbox, http: httpx.AsyncClient) -> None:
    inbox.script = [lambda _: (410, {})]
    with pytest.raises(Halted, match="wants no more events"):
        await webhook(http, inbox.url).send(an_object(1))


@dataclass
class Pages:
    """The feed, as pages of one event each; at its end the test ends. `errors` come before the pages."""

    events: Sequence[ObjectEvent | RemovalEvent]
    errors: list[Exception] = field(default_factory=list)

    async def feed(self, after: str, **_: object) -> FeedPage:
        if self.errors:
            raise self.errors.pop()
        position = int(after or 0)
        if position == len(self.events):
            raise EndOfTest
        return FeedPage([self.events[position]], str(position + 1), True)


class EndOfTest(Exception): ...


@dataclass
class Memory:
    cursor: str = ""

    def load(self) -> str:
        return self.cursor

    def save(self, cursor: str) -> None:
        self.cursor = cursor


def follower(pages: Pages, receiver: Webhook, memory: Memory, heard: Heard) -> Follower:
    return Follower(cast("AsyncClient", pages), delivery(receiver, heard), memory)


def delivery(receiver: Receiver, heard: Heard) -> Delivery:
    return Delivery(receiver, NotifyTelemetry(heard.telemetry))


@pytest.fixture
def heard() -> Iterator[Heard]:
    heard = Heard(Role.NOTIFY)
    yield heard
    heard.telemetry.shutdown()


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "back_off_s", lambda *_: 0.0)
    monkeypatch.setattr(follower_module, "REFUSED_RETRY_S", 0.0)


async def test_an_event_is_sent_until_it_is_taken_with_the_same_id_and_in_order(
    inbox: Inbox, http: httpx.AsyncClient, heard: Heard
) -> None:
    def taken_but_the_answer_is_lost(request: Request) -> Answer:
        inbox.take(request)
        return None

    inbox.script = [
        lambda _: OK,
        lambda _: (503, {"Retry-After": "0"}),
        lambda _: None,
        taken_but_the_answer_is_lost,
        lambda _: OK,
    ]
    events: list[ObjectEvent | RemovalEvent] = [an_object(1), a_removal(1), an_object(2)]
    memory = Memory()
    pages = Pages(events, [Unavailable(Outage.UNAVAILABLE, "-"), Refused(Refusal.UNAUTHENTICATED, "-")])
    with pytest.raises(EndOfTest):
        await follower(pages, webhook(http, inbox.url), memory, heard).run()
    ids = [document["id"] for document in inbox.documents()]
    one, removed, two = (str(event_id(event, "lake")) for event in events)
    assert ids == [one, removed, removed, two]
    assert memory.cursor == "3"
    assert heard.count("bronze.notify.events", bronze_outcome=Outcome.SUCCESS) == 3
    assert heard.count("bronze.notify.events", bronze_outcome=Outcome.FAILURE) == 3
    first, *_ = heard.spans("notify")
    assert [link.context for link in first.links] == [span_context(extract({"traceparent": TRACEPARENT}))]


async def test_after_a_crash_the_events_since_the_saved_cursor_are_sent_again(
    inbox: Inbox, http: httpx.AsyncClient, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cursor is saved after the events before it were taken, never earlier."""
    memory = Memory()
    receiver = webhook(http, inbox.url)
    saved: list[tuple[str, int]] = []
    monkeypatch.setattr(memory, "save", lambda cursor: saved.append((cursor, len(inbox.taken))))
    with pytest.raises(EndOfTest):
        await follower(Pages([an_object(1), an_object(2)]), receiver, memory, heard).run()
    assert saved == [("1", 1), ("2", 2)]
    with pytest.raises(EndOfTest):  # nothing was saved, as if it had been killed
        await follower(Pages([an_object(1), an_object(2)]), receiver, memory, heard).run()
    ids = [document["id"] for document in inbox.documents()]
    assert ids[:2] == ids[2:]


async def test_a_cursor_that_is_damaged_ends_its_follower_and_names_the_file(
    inbox: Inbox, http: httpx.AsyncClient, heard: Heard, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """It is not for the process to choose another begin: `latest` would leave events out."""
    file = tmp_path / "webhook.cursor"
    file.write_bytes(b"\xff")
    pages = Pages([an_object(1)], [Refused(Refusal.INVALID_CURSOR, "-")])
    with caplog.at_level(logging.ERROR):
        await Follower(
            cast("AsyncClient", pages), delivery(webhook(http, inbox.url), heard), FileCheckpoint(file)
        ).run()
    assert str(file) in caplog.text
    assert not inbox.taken


async def test_a_receiver_that_is_gone_ends_only_its_own_follower(
    inbox: Inbox, http: httpx.AsyncClient, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    inbox.script = [lambda _: (410, {})]
    memory = Memory()
    late = delivery(webhook(http, inbox.url), heard)
    gone = Follower(cast("AsyncClient", Pages([an_object(1)])), late, memory)
    with caplog.at_level(logging.ERROR):
        await gone.run()
    assert "wants no more events" in caplog.text
    assert memory.cursor == ""
    assert late.lag_s > 1000  # since the event was written: it still is not there
