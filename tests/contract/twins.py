"""A test with the mark `on_both` runs on the real nats-server and on the queue of the delivery model."""

import pytest

REAL = "nats-server"
MODEL = "model"

on_both = pytest.mark.parametrize("jetstream", [REAL, MODEL], indirect=True)
