"""The process that reads columnar bodies reaches no server."""

import os
import socket
import subprocess
import sys

import pytest

CONNECT = """
import socket, sys
from bronze.api.columnar_child import leave_network
left = leave_network()
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10)
except OSError as error:
    print(left, type(error).__name__)
else:
    print(left, "connected")
"""


def test_the_child_leaves_the_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", CONNECT, str(server.getsockname()[1])]
        said = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ)).stdout.split()
    if said == ["False", "connected"]:
        pytest.skip("this machine forbids namespaces")
    assert said == ["True", "OSError"]
