"""All that calls the API, on real processes, while the API needs keys, which commands take from the environment."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from signal import SIGTERM

import pytest
import pytest_asyncio
from playwright.async_api import async_playwright

from local.browser import chromium
from local.machine import limit_s
from tests.delivery.kill.harness import CLOSED, System, attempts

FLEET = ("--scope", "ingest:vehicles", "--scope", "read:vehicles")
CANARY = ("--scope", "ingest:canary", "--scope", "read:canary", "--scope", "trace")


#: As the system, which all tests share.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    async with System(tmp_path_factory.mktemp("system")) as system:
        system.start("api", "serve", **CLOSED)
        system.start("consumer", "consume")
        await system.at_work("api")
        await system.at_work("consumer")
        yield system


async def run(system: System, *words: str, key: str) -> tuple[int | None, str]:
    """The exit code of a command, and its output."""
    command = await system.command(*words, key=key)
    async with asyncio.timeout(limit_s(60)):
        out, _ = await command.communicate()
    return command.returncode, out.decode()


def ndjson(file: Path, *ids: object) -> str:
    file.write_text("".join(json.dumps({"vehicle_id": name}) + "\n" for name in ids))
    return str(file)


async def test_a_file_is_published_with_a_key_and_not_without(system: System, tmp_path: Path) -> None:
    key, file = await system.keys("create", "fleet", *FLEET), ndjson(tmp_path / "a.ndjson", "a", "b")
    other = await system.keys("create", "other", "--scope", "ingest:status")
    for wrong, status in ((f"bronze_{'0' * 12}_{'A' * 43}", 401), (other, 403)):
        code, out = await run(system, "publish", "vehicles", file, key=wrong)
        assert (code, str(status) in out) == (1, True), out
        assert wrong not in out
    async for _ in attempts(10, "the key does not hold"):
        code, out = await run(system, "publish", "vehicles", file, key=key)
        if code == 0:
            break
    assert "2 records" in out


async def test_a_directory_is_watched_with_a_key(system: System, tmp_path: Path) -> None:
    key, inbox = await system.keys("create", "watcher", *FLEET), tmp_path / "inbox"
    inbox.mkdir()
    ndjson(inbox / "a.ndjson", "a")
    report = tmp_path / "report.ndjson"
    watching = await system.command("publish", "vehicles", "--watch", str(inbox), "--report", str(report), key=key)
    async for _ in attempts(60, "nothing was sent"):
        if report.exists() and report.read_text():
            break
    watching.send_signal(SIGTERM)
    out, _ = await watching.communicate()
    assert watching.returncode == 0, out.decode()


async def test_quarantine_is_replayed_with_a_key(system: System, tmp_path: Path) -> None:
    key, file = await system.keys("create", "corrector", *FLEET), ndjson(tmp_path / "a.ndjson", "a", 7)
    async for _ in attempts(30, "it was not accepted"):
        code, out = await run(system, "publish", "vehicles", file, "--on-invalid", "quarantine", key=key)
        if code == 0:
            break
    async for _ in attempts(60, "nothing is in quarantine"):
        _, out = await run(system, "quarantine", "list", "--json", key=key)
        if found := [json.loads(line) for line in out.splitlines() if line.startswith("{")]:
            break
    corrected = ndjson(tmp_path / "b.ndjson", "N7")
    code, out = await run(system, "quarantine", "replay", "--yes", found[0]["key"], "--file", corrected, key=key)
    assert code == 0, out


async def test_canary_and_verification_need_no_more_than_their_keys(system: System) -> None:
    """The canary its own source, the verification none: it reads the bucket and the queue."""
    key = await system.keys("create", "canary", *CANARY)
    canary = await system.command("canary", key=key)
    assert canary.stdout
    seen = ""
    async with asyncio.timeout(limit_s(120)):
        while "lineage success" not in seen:
            line = await canary.stdout.readline()
            assert line, seen
            seen += line.decode()
    assert "accepted success, object success, once success" in seen
    canary.send_signal(SIGTERM)
    await canary.communicate()
    code, out = await run(system, "verify", key=key)
    assert code == 0, out


async def test_a_browser_logs_in_and_out_and_other_sites_cannot(system: System) -> None:
    """In a real browser: the form, the page, and a form of another site, whose requests have no cookie."""
    key, program = await system.keys("create", "person", "--scope", "read:*"), await asyncio.to_thread(chromium)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program.executable, env={**os.environ, **program.env}
        )
        context = await browser.new_context()
        page = await context.new_page()
        refused = await page.goto(f"{system.api_url}/runbook")
        assert refused
        assert refused.status == 401
        async for _ in attempts(30, "the key does not hold"):
            await page.get_by_label("API key").fill(key)
            async with page.expect_event("load"):
                await page.get_by_role("button", name="Log in").click()
            if page.url == f"{system.api_url}/runbook":
                break
        await page.goto(system.api_url)
        assert await page.get_by_text("person").is_visible()
        (cookie,) = await context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        assert await page.evaluate("document.cookie") == ""
        other = await context.new_page()
        for path, status in (("/login", 403), ("/logout", 403), ("/v1/ingest/vehicles", 401)):
            await other.goto("data:text/html,<form method=post><button>Go</button></form>")
            await other.evaluate("url => { document.forms[0].action = url }", f"{system.api_url}{path}")
            async with other.expect_response(f"{system.api_url}{path}") as answered:
                await other.get_by_role("button").click()
            answer = await answered.value
            assert answer.status == status, path
            assert "cookie" not in await answer.request.all_headers(), path
        await page.reload()
        assert await page.get_by_text("person").is_visible()
        await page.get_by_role("button", name="Log out").click()
        await page.wait_for_url("**/login")
        assert await context.cookies() == []
        await browser.close()
