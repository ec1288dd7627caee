"""How long a run is, and when it evaluates and saves."""

from typing import NamedTuple


class Length(NamedTuple):
    """Steps of the run, and between evaluations and checkpoints."""

    total: int
    eval_every: int
    checkpoint_every: int

    def evaluates(self, step: int) -> bool:
        return step > 0 and (step % self.eval_every == 0 or step == self.total)

    def saves(self, step: int) -> bool:
        return step % self.checkpoint_every == 0 or self.evaluates(step)


def of(train, per_epoch: int) -> Length:
    """`epochs`, or `steps` where there are none; both kinds of interval default to an epoch.

    Args:
      train: the config's block.
      per_epoch: steps of an epoch.
    """
    total = train.epochs * per_epoch if train.epochs else train.steps
    return Length(total, train.eval_every or per_epoch, train.checkpoint_every or per_epoch)
