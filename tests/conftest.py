"""What every test can rely on: the real clients it names are there, or it says so.

``@pytest.mark.client("qemu-img", ...)`` names what a test needs that pip cannot install. Where one is missing the test
skips, naming it and its Debian package; with ``TWINVOL_REQUIRE_CLIENTS=1`` (CI) it fails instead, so that nothing
can go unproven there without being seen.
"""

from __future__ import annotations

import logging
import os

import pytest
from hypothesis import HealthCheck, settings

from tests.support.clients import look_in_sbin, missing

# aiohttp's parser in Python, as the management process has it (docs/decisions/0041): hostile clients meet the same one.
os.environ["AIOHTTP_NO_EXTENSIONS"] = "1"


def pytest_configure() -> None:
    """Before anything looks for a program."""
    look_in_sbin()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or in CI fail, a test whose real client is not here. Simulations silence what is logged: that ends here."""
    logging.disable(logging.NOTSET)
    reasons = [reason for mark in item.iter_markers("client") for name in mark.args if (reason := missing(name))]
    if not reasons:
        return
    text = "; ".join(dict.fromkeys(reasons))
    if os.environ.get("TWINVOL_REQUIRE_CLIENTS") == "1":
        pytest.fail(f"TWINVOL_REQUIRE_CLIENTS=1 and {text}", pytrace=False)
    pytest.skip(text)


@pytest.fixture(autouse=True)
def _no_pool_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool named in the environment must not be what a test works on."""
    monkeypatch.delenv("TWINVOL_POOL", raising=False)


# Examples are not timed, nor is making them: what a property test does on a loaded machine must not decide whether it
# passes. They are the same in each run, until the test changes; ``--hypothesis-seed=N`` looks for others.
settings.register_profile(
    "twinvol", deadline=None, print_blob=True, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("twinvol")
