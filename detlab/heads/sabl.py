"""What the heads of SABL predict for the four sides of a box (arXiv:1912.04260, section 3).

Letters: S buckets of a side.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from detlab import layers


def buckets_per_side(num_buckets: int) -> int:
    """S, when `num_buckets` divide the width and the height; two sides share one in the middle."""
    return -(-num_buckets // 2)


def outputs(num_buckets: int) -> dict[str, tuple[int, Callable]]:
    """The outputs of a box branch, name -> (channels, bias initialiser); see `by_side`."""
    channels = 4 * buckets_per_side(num_buckets)
    return {name: (channels, nn.initializers.zeros) for name in ("bucket_logits", "bucket_offsets")}


def by_side(values):
    """Splits values [..., 4 * S] into those of the four sides, [..., 4, S].

    The sides are left, right, top, bottom, and their buckets run from outside inwards.
    """
    return values.reshape(*values.shape[:-1], 4, -1)


def split_sides(along_x, along_y):
    """Splits values at positions along both axes into those of the four sides, [..., 4, S].

    Args:
      along_x, along_y: [..., K].  Both sides share the position in the middle if K is odd.
    """
    count = buckets_per_side(along_x.shape[-1])
    halves = [x for axis in (along_x, along_y) for x in (axis, axis[..., ::-1])]
    return jnp.stack([x[..., :count] for x in halves], axis=-2)


class BoxHead(nn.Module):
    """The box head of SABL R-CNN: classes from the whole RoI, its sides from one axis each.

    Both parts take RoI features [..., S, S, D], where S is also the number of buckets of a side.
    Parameter paths: `fc`, `cls_logits`; `conv0`, `conv1`, and of the axes x and y `attention_x`,
    `conv_x`, `upsample_x`, `attention_y` and so on; `bucket_logits`, `bucket_offsets`.
    """

    num_classes: int
    width: int = 1024  # of the hidden layer for classes
    side_width: int = 256  # of the layers for sides
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        def dense(features, init):
            return nn.Dense(features, kernel_init=init, dtype=self.dtype)

        def conv(height, width):
            return layers.Conv(self.side_width, (height, width), dtype=self.dtype)

        def attention():
            return layers.Conv(1, 1, kernel_init=layers.normal_001, dtype=self.dtype)

        self.fc = dense(self.width, nn.initializers.xavier_uniform())
        self.cls_logits = dense(self.num_classes + 1, layers.normal_001)
        self.conv0, self.conv1 = conv(3, 3), conv(3, 3)
        self.attention_x, self.attention_y = attention(), attention()
        self.conv_x, self.conv_y = conv(1, 3), conv(3, 1)
        self.upsample_x = Upsample(self.side_width, dtype=self.dtype)
        self.upsample_y = Upsample(self.side_width, dtype=self.dtype)
        self.bucket_logits = dense(1, layers.normal_001)
        self.bucket_offsets = dense(1, nn.initializers.normal(0.001))

    def classify(self, x: jax.Array) -> jax.Array:
        """[..., S, S, D] -> logits [..., C + 1] of the classes and background (last), float32."""
        x = x.astype(self.dtype).reshape(*x.shape[:-3], -1)  # row, column, channel
        return self.cls_logits(nn.relu(self.fc(x))).astype(jnp.float32)

    def localise(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[..., S, S, D] -> logits and offsets of the buckets, [..., 4, S] each, float32.

        Columns become positions along x, rows those along y, and each position two (section 3.1).
        """
        leading = x.shape[:-3]
        x = x.astype(self.dtype).reshape(-1, *x.shape[-3:])
        for conv in (self.conv0, self.conv1):
            x = nn.relu(conv(x))
        along_x = self.conv_x(pooled(x, self.attention_x(x), axis=1))[:, 0]  # [..., S, D]
        along_y = self.conv_y(pooled(x, self.attention_y(x), axis=2))[:, :, 0]
        along_x = nn.relu(self.upsample_x(nn.relu(along_x)))  # [..., 2 * S, D]
        along_y = nn.relu(self.upsample_y(nn.relu(along_y)))

        def predicted(output):
            found = (output(x)[..., 0].astype(jnp.float32) for x in (along_x, along_y))
            return split_sides(*(values.reshape(*leading, -1) for values in found))

        return predicted(self.bucket_logits), predicted(self.bucket_offsets)


def pooled(x, attention, axis: int):
    """The weighted mean over rows, [N, 1, W, D], or columns, [N, H, 1, D].

    Args:
      x: [N, H, W, D].
      attention: [N, H, W, 1] logits of the weights, which are sigmoids divided by their sum.
      axis: 1 for rows, 2 for columns.
    """
    # A sum of sigmoids could be 0, the softmax of their logarithms is the same.
    weights = nn.softmax(nn.log_sigmoid(attention.astype(jnp.float32)), axis)
    return (x * weights.astype(x.dtype)).sum(axis, keepdims=True)


class Upsample(nn.Module):
    """Transposed convolution of size 2 and stride 2: two positions from each one."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):  # [N, S, D] -> [N, 2 * S, features]
        kernel = self.param("kernel", nn.initializers.he_normal(), (2, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        found = jnp.stack([x @ kernel[0], x @ kernel[1]], axis=-2) + bias.astype(self.dtype)
        return found.reshape(len(x), -1, self.features)
