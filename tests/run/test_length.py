"""The length of a run, and the steps at which it evaluates and saves."""

import pytest

from detlab.experiments import common
from detlab.run import length


@pytest.fixture
def train():
    return common.base("retinanet").train


def test_epochs_count_or_steps_where_there_are_none(train):
    train.epochs = 3
    assert length.of(train, per_epoch=10) == length.Length(30, 10, 10)
    train.update(epochs=0, steps=25)
    assert length.of(train, per_epoch=10) == length.Length(25, 10, 10)


def test_intervals_may_be_other_than_an_epoch(train):
    train.update(steps=25, eval_every=8, checkpoint_every=5)
    found = length.of(train, per_epoch=10)
    steps = range(26)
    assert [step for step in steps if found.evaluates(step)] == [8, 16, 24, 25]
    # Each evaluated step is saved too, and so is the last step.
    assert [step for step in steps if found.saves(step)] == [0, 5, 8, 10, 15, 16, 20, 24, 25]
