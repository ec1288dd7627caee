"""The folder of the compact case, and changed copies of it."""

import parity_runs
import pytest


@pytest.fixture(scope="session")
def compact(repository):
    """The folder with the case in this repository, cut from the shared one."""
    return repository / "tests" / "data" / "parity"


@pytest.fixture
def fixtures(compact, tmp_path):
    """`fixtures(change)`: a folder with the compact case, changed."""
    return lambda change: parity_runs.changed(compact, tmp_path, change)
