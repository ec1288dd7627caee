"""Blocks of cells to channels, in the two orders of darknet."""

from typing import Any

Array = Any


def blocks_to_channels(x: Array, stride: int) -> Array:
    """The cells of each `stride` x `stride` block as channels: by row, column and channel.

    It is [reorg3d] of darknet.

    Args:
      x: [B, H, W, C]; `stride` divides H and W.
      stride: of the blocks.
    Returns:
      [B, H / stride, W / stride, stride^2 C].
    """
    batch, height, width, channels = x.shape
    rows, columns = height // stride, width // stride
    x = x.reshape(batch, rows, stride, columns, stride, channels).swapaxes(2, 3)
    return x.reshape(batch, rows, columns, stride**2 * channels)
