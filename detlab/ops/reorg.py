"""Blocks of cells to channels, in the two orders of darknet."""

import jax


def blocks_to_channels(x: jax.Array, stride: int) -> jax.Array:
    """The cells of each `stride` x `stride` block as channels: by row, column and channel.

    It is [reorg3d] of darknet.

    Args:
      x: [B, H, W, C]; `stride` divides H and W.
      stride: of the blocks.
    Returns:
      [B, H / stride, W / stride, stride^2 C].
    Example:
      >>> blocks_to_channels(jax.numpy.arange(4).reshape(1, 2, 2, 1), 2).ravel().tolist()
      [0, 1, 2, 3]
    """
    batch, height, width, channels = x.shape
    rows, columns = height // stride, width // stride
    x = x.reshape(batch, rows, stride, columns, stride, channels).swapaxes(2, 3)
    return x.reshape(batch, rows, columns, stride**2 * channels)


def reorg(x: jax.Array, stride: int) -> jax.Array:
    """The [reorg] of darknet, which mixes channels and cells.

    The values of the map, in order of channel, row and column, are read as a map of C / stride^2
    channels with `stride` times the rows and columns.  Its blocks become channels, and the values
    of the result, in the same order, are those of the output.

    Args:
      x: [B, H, W, C]; `stride` divides H and W, and its square C.
      stride: of the blocks.
    Returns:
      [B, H / stride, W / stride, stride^2 C].
    Example:
      >>> reorg(jax.numpy.arange(16).reshape(1, 2, 2, 4), 2).ravel().tolist()
      [0, 8, 2, 10, 4, 12, 6, 14, 1, 9, 3, 11, 5, 13, 7, 15]
    """
    batch, height, width, channels = x.shape
    x = x.transpose(0, 3, 1, 2).reshape(batch, -1, height * stride, width * stride)
    x = blocks_to_channels(x.transpose(0, 2, 3, 1), stride).transpose(0, 3, 1, 2)
    x = x.reshape(batch, channels * stride**2, height // stride, width // stride)
    return x.transpose(0, 2, 3, 1)
