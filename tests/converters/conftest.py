"""A writer of PyTorch files for the tests of readers and tables."""

import pth_writer
import pytest


@pytest.fixture
def pth():
    return pth_writer.Pth()
