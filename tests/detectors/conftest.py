"""The tiny detectors, which the test of the contract and each detector's own test file share."""

import functools

import pytest
import tiny


@pytest.fixture(scope="session")
def subject_of():
    """`subject_of(name)`: the one `tiny.Subject` of that name, so its programs compile once."""
    return functools.cache(tiny.Subject)
