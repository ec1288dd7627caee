"""The length of a run, and the steps at which it evaluates and saves."""

from typing import NamedTuple

from ml_collections import config_dict


class Length(NamedTuple):
    """Number of steps of the run, between evaluations, and between checkpoints."""

    total: int
    eval_every: int
    checkpoint_every: int

    def evaluates(self, step: int) -> bool:
        return step > 0 and (step % self.eval_every == 0 or step == self.total)

    def saves(self, step: int) -> bool:
        return step % self.checkpoint_every == 0 or self.evaluates(step)


def of(train: config_dict.ConfigDict, per_epoch: int) -> Length:
    """The length from `epochs`, or from `steps` if `epochs` is 0; intervals default to an epoch.

    Args:
      train: `config.train`.
      per_epoch: steps per epoch.
    """
    total = train.epochs * per_epoch if train.epochs else train.steps
    return Length(total, train.eval_every or per_epoch, train.checkpoint_every or per_epoch)
