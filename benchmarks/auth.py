"""Auth: what it costs to ask who sends a request, with the same small requests as `small`.

An API without keys, one with keys and tokens, and one with rates as well. Telemetry is off: with it a request takes
longer, and the same costs are a smaller share.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from joserfc import jwt
from joserfc.jwk import RSAKey

from benchmarks.load import Load
from benchmarks.rounds import Figures, Found, Target, interleaved, quantile, ratio
from benchmarks.sample import status
from benchmarks.small import CONNECTIONS, FOR_S, FOR_S_QUICK, OFF, RATE
from benchmarks.stand import SAMPLE, Options, System, offer, one_line, say, system
from local.exporters import Exporters
from local.programs import environment

CPU = "CPU endpoint, ms"
COST_MAX = 1.05
ISSUER, AUDIENCE = "https://issuer.example", "bronze"
#: Three processes share the open batches of a stream.
SHARED = {**OFF, "BRONZE_OPEN_BATCHES_MAX": "13"}
RATES = {"BRONZE_REQUESTS_PER_S_MAX": "1e6", "BRONZE_BYTES_PER_S_MAX": "1e9"}


def requests(bench: System, name: str, credential: str, file: str, for_s: float) -> Figures:
    """The records one after the other, for so long; then what was accepted is waited for."""
    mark = bench.feed.mark
    load = Load(
        ports=[bench.port(name)],
        path="/v1/ingest/status",
        file=file,
        records=1,
        connections=CONNECTIONS,
        for_s=for_s,
        headers={"Authorization": f"Bearer {credential}"} if credential else {},
    )
    with bench.cpu() as cpu:
        sent = offer(load)
    bench.feed.until(mark, sent.records)
    return {
        RATE: sent.requests / sent.seconds,
        "p50, ms": quantile(sent.latencies_s, 0.5) * 1000,
        "p99, ms": quantile(sent.latencies_s, 0.99) * 1000,
        CPU: 1000 * cpu[f"CPU {name}, s"] / sent.requests,
    }


def api_key(bench: System) -> str:
    """A new API key, as `bronze keys` makes it."""
    command = (sys.executable, "-m", "bronze", "keys", "create", "fleet", "--scope", "ingest:*", "--yes")
    env = {**environment(), **bench.stack.queue_env("admin")}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()


def issuer(folder: Path) -> tuple[Mapping[str, str], str]:
    """The settings for an issuer with an RSA key in a file, and a token of it."""
    key = RSAKey.generate_key(2048, {"kid": "1"})
    file = folder / "jwks.json"
    file.write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    now_s = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "fleet", "exp": now_s + 86_400, "scope": "ingest:*"}
    settings = {"BRONZE_JWT_ISSUER": ISSUER, "BRONZE_JWT_AUDIENCE": AUDIENCE, "BRONZE_JWT_KEYS": str(file)}
    return settings, jwt.encode({"alg": "RS256", "kid": "1"}, claims, key)


def run(options: Options) -> Found:
    file = str(status(SAMPLE, say))
    for_s = FOR_S_QUICK if options.quick else FOR_S
    with system("auth", SHARED, Exporters(traces=("none",))) as bench:
        trust, token = issuer(bench.stack.root)
        closed = {**SHARED, **trust, "BRONZE_AUTH": "keys"}
        key = api_key(bench)
        bench.add(bench.api("api-closed", closed), bench.api("api-limited", {**closed, **RATES}))
        variants = {
            "open": partial(requests, bench, "api", "", file, for_s),
            "key": partial(requests, bench, "api-closed", key, file, for_s),
            "token": partial(requests, bench, "api-closed", token, file, for_s),
            "key, with rates": partial(requests, bench, "api-limited", key, file, for_s),
        }
        for warm_up in variants.values():
            warm_up()
        runs = interleaved(
            variants, options.repeats, lambda n, variant, f: one_line(n, options.repeats, variant, f, RATE, CPU)
        )
    return Found(
        runs,
        (
            Target("ratio_key_open", ratio(runs["key"], runs["open"], CPU), most=COST_MAX),
            Target("ratio_token_open", ratio(runs["token"], runs["open"], CPU), most=COST_MAX),
            Target("ratio_rates_open", ratio(runs["key, with rates"], runs["open"], CPU), most=COST_MAX),
        ),
        {"connections": CONNECTIONS, "for_s": for_s},
    )
