"""The box head of two-stage detectors: two fully connected layers (arXiv:1612.03144, 4.2)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from detlab.ops import gradient

xavier_uniform = nn.initializers.xavier_uniform()


class BoxHead(nn.Module):
    """Features of each RoI -> logits of C classes and background (last), and deltas.

    Parameter paths: `fc0`, `fc1`, `cls_logits`, `box_deltas`.
    """

    num_classes: int
    width: int = 1024
    class_agnostic: bool = False  # the same deltas for all classes
    dtype: jnp.dtype = jnp.float32

    def __call__(self, x):
        """[..., S, S, D] -> logits [..., C + 1] and deltas [..., C * 4], float32.

        Class-agnostic deltas are [..., 4].
        """
        logits, deltas, _ = self.with_products(x)
        return logits, deltas

    @nn.compact
    def with_products(self, x, known: Sequence = (None, None)):
        """(logits, deltas, products [..., width] of the two layers before their biases).

        Args:
          x: [..., S, S, D].
          known: the products, if they have been computed before, else None; they get no gradient of
            their own.
        """
        products = list(known)

        def product_of(i):
            def product(x, kernel, *settings, **options):
                if known[i] is None:
                    products[i] = lax.dot_general(x, kernel, *settings, **options)
                    return products[i]
                return gradient.known_product(x, kernel, known[i])

            return product

        x = x.astype(self.dtype).reshape(*x.shape[:-3], -1)  # row, column, channel
        for i in range(2):
            dense = nn.Dense(
                self.width,
                kernel_init=xavier_uniform,
                dtype=self.dtype,
                dot_general=product_of(i),
                name=f"fc{i}",
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
        return cls(x).astype(jnp.float32), box(x).astype(jnp.float32), products


def of_label(deltas: jax.Array, labels: jax.Array) -> jax.Array:
    """Selects the deltas [..., 4] of one class from deltas [..., C * 4], or [..., 4] of all."""
    if deltas.shape[-1] == 4:  # class-agnostic, or a single class
        return deltas
    deltas = deltas.reshape(*labels.shape, -1, 4)
    return jnp.take_along_axis(deltas, labels[..., None, None], axis=-2)[..., 0, :]
