"""The box head of two-stage detectors: two fully connected layers (arXiv:1612.03144, 4.2)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

xavier_uniform = nn.initializers.xavier_uniform()


class BoxHead(nn.Module):
    """Features of each RoI -> logits of C classes and background (last), and deltas.

    Parameter paths: `fc0`, `fc1`, `cls_logits`, `box_deltas`.
    """

    num_classes: int
    width: int = 1024
    class_agnostic: bool = False  # the same deltas for all classes
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[..., S, S, D] -> logits [..., C + 1] and deltas [..., C * 4], float32.

        Class-agnostic deltas are [..., 4].
        """
        x = x.astype(self.dtype).reshape(*x.shape[:-3], -1)  # row, column, channel
        for i in range(2):
            dense = nn.Dense(
                self.width, kernel_init=xavier_uniform, dtype=self.dtype, name=f"fc{i}"
            )
            x = nn.relu(dense(x))
        cls = nn.Dense(
            self.num_classes + 1,
            kernel_init=nn.initializers.normal(0.01),
            dtype=self.dtype,
            name="cls_logits",
        )
        box = nn.Dense(
            4 * (1 if self.class_agnostic else self.num_classes),
            kernel_init=nn.initializers.normal(0.001),
            dtype=self.dtype,
            name="box_deltas",
        )
        return cls(x).astype(jnp.float32), box(x).astype(jnp.float32)


def of_label(deltas: jax.Array, labels: jax.Array) -> jax.Array:
    """Selects the deltas [..., 4] of one class from deltas [..., C * 4], or [..., 4] of all."""
    if deltas.shape[-1] == 4:  # class-agnostic, or a single class
        return deltas
    deltas = deltas.reshape(*labels.shape, -1, 4)
    return jnp.take_along_axis(deltas, labels[..., None, None], axis=-2)[..., 0, :]
