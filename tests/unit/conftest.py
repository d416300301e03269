"""Hypothesis, for all unit tests."""

from hypothesis import settings

# how long an example takes says more of the machine's load than of the code
settings.register_profile("bronze", deadline=None)
settings.load_profile("bronze")
