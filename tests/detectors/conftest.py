"""The tiny detectors, shared by the test of the contract and each detector's own test file."""

import functools

import pytest
import tiny


@pytest.fixture(scope="session")
def subject_of():
    """`subject_of(name)`: a `tiny.Subject`, cached so that its programs compile once."""
    return functools.cache(tiny.Subject)
