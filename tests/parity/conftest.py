"""Where cases lie."""

import pytest


@pytest.fixture(scope="session")
def compact(repository):
    """The case that lies in this repository, cut from the shared one."""
    return repository / "tests" / "data" / "parity"
