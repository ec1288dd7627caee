"""Heads of corner detectors: corner pooling and the maps after it (arXiv:1808.01244, 3.4).

Parameter paths of a branch: `pool/{first,second,pooled,shortcut,out}/{conv,norm}`, and for each
map `heat_conv/conv`, `heat`, `offset_conv/conv`, `offset`, and in CornerNet `tag_conv/conv`, `tag`.
CentripetalNet has `guiding_conv/conv`, `guiding`, `centripetal_conv/conv`, `centripetal`, and for
its feature adaption `places` and `deform`.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from detlab import layers
from detlab.ops import corner_pool

TOP_LEFT, BOTTOM_RIGHT = ("top", "left"), ("bottom", "right")

# For the last convolution of each map: uniform in +-sqrt(1 / fan in), PyTorch's default.  The
# reference found 0.2 AP more with it than with the initialiser of its other layers.
_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class CornerPooling(nn.Module):
    """The sum of maxima along two directions, in a residual block (figure 7 of the paper).

    Attributes:
      out_kernel: side of the last convolution; 1 in RepPoints V2.
    """

    directions: tuple[str, str]
    pool_width: int = 128
    norm: str = "batch"
    norm_groups: int = 32
    out_kernel: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):  # [B, H, W, D] -> the same shape
        width = x.shape[-1]

        def conv(name, width, kernel_size=3, activation=None):
            return layers.ConvNorm(
                width,
                kernel_size,
                norm=self.norm,
                activation=activation,
                norm_groups=self.norm_groups,
                dtype=self.dtype,
                name=name,
            )

        pooled = sum(
            corner_pool.corner_pool(conv(name, self.pool_width, 3, nn.relu)(x, train), direction)
            for name, direction in zip(("first", "second"), self.directions, strict=True)
        )
        y = conv("pooled", width)(pooled, train) + conv("shortcut", width, 1)(x, train)
        return conv("out", width, self.out_kernel, nn.relu)(nn.relu(y), train)


class CornerBranch(nn.Module):
    """One kind of corner: pooling, then a 3x3 and a 1x1 convolution for each map.

    Attributes:
      outputs: name of a map -> (channels, bias initialiser).
      head_width: channels of the 3x3 convolution of each map.
    """

    directions: tuple[str, str]
    outputs: Mapping[str, tuple[int, Callable]]
    pool_width: int = 128
    head_width: int = 256
    norm: str = "batch"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        """[B, H, W, D] -> {name: [B, H, W, channels] float32}."""
        _, maps = self._pooled_and_maps(x, train)
        return maps

    def _pooled_and_maps(self, x, train):
        pool = CornerPooling(
            self.directions, self.pool_width, self.norm, dtype=self.dtype, name="pool"
        )
        x = pool(x, train)
        return x, {
            name: self._predicted(name, x, channels, train, bias_init)
            for name, (channels, bias_init) in self.outputs.items()
        }

    def _predicted(self, name, x, channels, train, bias_init=nn.initializers.zeros):
        """A map by a 3x3 and a 1x1 convolution of it: [B, H, W, channels] float32."""
        conv = layers.ConvNorm(
            self.head_width, activation=nn.relu, dtype=self.dtype, name=f"{name}_conv"
        )
        predict = layers.Conv(
            channels, 1, kernel_init=_uniform, bias_init=bias_init, dtype=self.dtype, name=name
        )
        return predict(conv(x, train)).astype(jnp.float32)


class CentripetalBranch(CornerBranch):
    """One kind of corner of CentripetalNet (arXiv:2003.09119, sections 3.2 and 3.3).

    The guiding shift, from a corner to the centre of its object, decides where a deformable
    convolution reads the features from which the centripetal shift is predicted.

    `outputs` lacks the two shifts.
    """

    @nn.compact
    def __call__(self, x, train: bool):
        """[B, H, W, D] -> {name: [B, H, W, channels] float32}.

        `guiding` and `centripetal` have two channels: x, y.  The guiding shift gets no gradient
        from the centripetal one.
        """
        x, maps = self._pooled_and_maps(x, train)
        guiding = self._predicted("guiding", x, 2, train)
        places = layers.Conv(
            3 * 3 * 2,  # dy, dx of each tap
            1,
            use_bias=False,
            kernel_init=nn.initializers.normal(0.1),
            dtype=self.dtype,
            name="places",
        )
        deform = layers.DeformConv(
            x.shape[-1], kernel_init=layers.normal_001, dtype=self.dtype, name="deform"
        )
        (adapted,) = deform((x,), (places(lax.stop_gradient(guiding)),))
        return maps | {
            "guiding": guiding,
            "centripetal": self._predicted("centripetal", adapted, 2, train),
        }
