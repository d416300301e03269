import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from local.programs import (
    LOOPBACK,
    LocalError,
    NotReady,
    Program,
    check_ports,
    environment,
    free_ports,
    http_get,
    is_free,
    start,
)

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(sys.argv[2])); self.end_headers(); self.wfile.write(b"hello")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def server(port: int, status: int = 200) -> Program:
    return Program(
        name="hello",
        command=(sys.executable, "-c", SERVER, str(port), str(status)),
        ports={"http": port},
        ready=lambda: http_get(port, "/"),
        port_variable="BRONZE_LOCAL_PORT_HELLO",
    )


def test_starts_and_stops(tmp_path: Path) -> None:
    """A program is ready when it is started, can be killed and restarted on its port, and is gone after the context."""
    port = free_ports()
    with start(server(port), tmp_path / "log") as process:
        assert http_get(port, "/") == b"hello"
        before = process.pid
        process.restart()
        assert process.pid != before
        assert http_get(port, "/") == b"hello"
    assert not process.alive()
    assert is_free(port)


def test_taken_port(tmp_path: Path) -> None:
    """A taken port is named, with who wants it and the variable that moves it."""
    with socket.create_server((LOOPBACK, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(LocalError, match=rf"port {port} .* hello .*BRONZE_LOCAL_PORT_HELLO"):
            start(server(port), tmp_path / "log")


def test_all_taken_ports_are_in_one_line() -> None:
    with socket.create_server((LOOPBACK, 0)) as one, socket.create_server((LOOPBACK, 0)) as two:
        a, b = one.getsockname()[1], two.getsockname()[1]
        program = replace(server(a), ports={"http": a, "metrics": b})
        with pytest.raises(LocalError) as raised:
            check_ports(program)
    assert str(raised.value) == (
        f"ports {a} (http), {b} (metrics) are in use by another program, but hello needs them: "
        "set BRONZE_LOCAL_PORT_HELLO to another"
    )


def test_dies_while_it_starts(tmp_path: Path) -> None:
    """A program that ends before it is ready is reported at once, with the end of its log."""
    program = Program("sad", (sys.executable, "-c", "print('the reason')"), {}, lambda: http_get(free_ports(), "/"))
    with pytest.raises(LocalError, match=r"sad ended during its start(.|\n)*the reason"):
        start(program, tmp_path / "log")


def test_never_ready(tmp_path: Path) -> None:
    """A program that answers with errors is not ready, and does not stay behind."""
    port = free_ports()
    with pytest.raises(LocalError, match=r"hello was not ready after 1 s: .*503 hello"):
        start(server(port, status=503), tmp_path / "log", timeout_s=1)
    assert is_free(port)


def test_stubborn_program_is_killed(tmp_path: Path) -> None:
    """A program that ignores SIGTERM is killed when its time is over."""
    deaf = "import signal as s, time; s.signal(s.SIGTERM, s.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    log = tmp_path / "log"

    def ready() -> None:
        if "deaf" not in log.read_text():
            raise NotReady("still hears")

    with start(Program("deaf", (sys.executable, "-c", deaf), {}, ready, stop_s_max=0.2), log) as process:
        pass
    assert process.wait(0) == -9


def test_ports_lie_together() -> None:
    """A block of ports is free as a whole, and outside the range of outgoing connections."""
    first = free_ports(8)
    assert all(is_free(port) for port in range(first, first + 8))
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert first + 8 <= lowest


def test_no_two_processes_get_the_same_port() -> None:
    """A server may bind its port long after it was chosen, so being free then is not enough."""
    choose = "from local.programs import free_ports; print([free_ports() for _ in range(500)], flush=True); input()"
    others = [
        subprocess.Popen((sys.executable, "-c", choose), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    chosen = {free_ports() for _ in range(500)}
    for other in others:
        assert other.stdout
        theirs = set(json.loads(other.stdout.readline()))
        assert len(theirs) == 500
        assert not chosen & theirs
        chosen |= theirs
    for other in others:
        other.communicate("\n")
        assert other.returncode == 0


def test_accounts_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell's own cloud account, its settings of telemetry, and what servers take for options of theirs do not reach
    the programs; what a program sets does, and so do settings of ours and certificates.
    """
    foreign = ["AWS_PROFILE", "OTEL_SDK_DISABLED", "DEBUG", "FILER", "WEED_S3_PORT", "GF_AUTH_ANONYMOUS_ORG_ROLE"]
    foreign += ["STORAGE_TYPE", "QUERY_PORT", "JAVA_TOOL_OPTIONS", "GODEBUG", "LD_PRELOAD", "PYTHONPATH"]
    for name in foreign:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("BRONZE_LANES", "2")
    monkeypatch.setenv("SSL_CERT_FILE", "/ca.pem")
    program = Program("p", ("true",), {}, lambda: None, env={"AWS_ACCESS_KEY_ID": "bronze"})
    seen = environment(program)
    assert seen["AWS_ACCESS_KEY_ID"] == "bronze"
    assert not seen.keys() & {*foreign}
    assert (seen["BRONZE_LANES"], seen["SSL_CERT_FILE"]) == ("2", "/ca.pem")


def test_logs_are_kept(tmp_path: Path) -> None:
    """What a program prints, on both outputs, is in its log."""
    code = "import sys; print('out', flush=True); print('err', file=sys.stderr, flush=True); sys.stdin.read()"
    log = tmp_path / "deep" / "log"

    def ready() -> None:
        if not {"out", "err"} <= set(log.read_text().split()):
            raise NotReady("silent")

    with start(Program("p", (sys.executable, "-c", code + "; import time; time.sleep(60)"), {}, ready), log):
        pass
    assert subprocess.run(["cat", str(log)], capture_output=True, check=True).stdout == b"out\nerr\n"


def test_what_a_program_writes_is_for_this_user_alone(tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'file')!r}, 'w').close(); import time; time.sleep(60)"

    def ready() -> None:
        if not (tmp_path / "file").exists():
            raise NotReady("it has written nothing")

    before = os.umask(0)
    try:
        with start(Program("p", (sys.executable, "-c", code), {}, ready), tmp_path / "log"):
            assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
