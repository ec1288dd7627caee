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


def reorg(x: Array, stride: int) -> Array:
    """The [reorg] of darknet, which mixes channels and cells.

    The values of the map, in order of channel, row and column, are read as a map of C / stride^2
    channels with `stride` times the rows and columns.  Its blocks become channels, and the values
    of the result, in the same order, are those of the output.

    Args:
      x: [B, H, W, C]; `stride` divides H and W, and its square C.
      stride: of the blocks.
    Returns:
      [B, H / stride, W / stride, stride^2 C].
    """
    batch, height, width, channels = x.shape
    x = x.transpose(0, 3, 1, 2).reshape(batch, -1, height * stride, width * stride)
    x = blocks_to_channels(x.transpose(0, 2, 3, 1), stride).transpose(0, 3, 1, 2)
    x = x.reshape(batch, channels * stride**2, height // stride, width // stride)
    return x.transpose(0, 2, 3, 1)
