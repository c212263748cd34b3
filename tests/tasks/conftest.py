"""The data root of the real image sets, for the tests that read them."""

import os

import pytest


@pytest.fixture(scope="session")
def real_images():
    """Data root from the environment. Without it the test is skipped."""
    root = os.environ.get("RAY_DELTASTN_DATA")
    if not root:
        pytest.skip("RAY_DELTASTN_DATA names no data root")
    return root
