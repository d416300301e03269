"""`bronze table` returns large buffers to the system once they are freed: its threads upload files for weeks."""

import os
import subprocess
import sys

#: Arrow allocates 10 MB for each file that it uploads.
THREADS, BUFFER_BYTES = 8, 10_000_000
#: Runs `bronze table` until it would enter its event loop. Instead, threads use buffers as uploads do. It prints the
#: bytes of memory that the process has more than before.
USE_BUFFERS = f"""
import sys, threading, uvloop
from concurrent.futures import ThreadPoolExecutor

def resident_bytes():
    import psutil
    return psutil.Process().memory_info().rss

def use(everyone):
    import ctypes, pyarrow as pa
    for _ in range(3):
        buffer = pa.allocate_buffer({BUFFER_BYTES})
        ctypes.memset(buffer.address, 0, {BUFFER_BYTES})
        everyone.wait()
        del buffer
        everyone.wait()

def compare(run):
    run.close()
    everyone, before = threading.Barrier({THREADS}), resident_bytes()
    with ThreadPoolExecutor({THREADS}) as threads:
        list(threads.map(use, [everyone] * {THREADS}))
        print(resident_bytes() - before)
    return 0

uvloop.run = compare
sys.argv = ["bronze", "table"]
from bronze.__main__ import main
main()
"""


def test_freed_buffers_are_returned() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", USE_BUFFERS],
        env={name: value for name, value in os.environ.items() if not name.startswith(("BRONZE_", "OTEL_", "ARROW_"))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(shown.stdout) < BUFFER_BYTES
