"""VGG16 (arXiv:1409.1556) without its classifier, as SSD uses it (arXiv:1512.02325, section 3).

The last pooling has stride 1, and the first two linear layers of the classifier are subsampled to
convolutions, the first of them dilated.  Other poolings round sizes up.

Parameter paths: `stage1/conv1/{conv,norm}`, ..., `stage5/conv3/...`, `fc6/...`, `fc7/...`.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from detlab import layers
from detlab.ops import pool


class Stage(nn.Module):
    """3x3 convolutions of one width, each with a ReLU."""

    width: int
    convs: int
    norm: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        common = dict(norm=self.norm, activation=nn.relu, dtype=self.dtype)
        for i in range(self.convs):
            x = layers.ConvNorm(self.width, name=f"conv{i + 1}", **common)(x, train)
        return x


class VGG(nn.Module):
    """Images to conv4_3, of stride 8, and fc7, of stride 16.

    `remat` is as in `resnet.ResNet`.
    """

    convs: Sequence[int] = (2, 2, 3, 3, 3)  # of each stage: VGG16
    width: int = 64  # of stage 1; each stage has twice the channels, up to eight times as many
    fc_width: int = 1024
    norm: str = "none"
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, train: bool):
        """[B, H, W, 3] normalised images -> (C4, C5), each [B, H/s, W/s, channels]."""
        # Argument 2 of the stage, counted from self, is `train`: a Python value.
        stage = nn.remat(Stage, static_argnums=(2,)) if self.remat else Stage
        common = dict(norm=self.norm, dtype=self.dtype)
        x, features = images, []
        for i, convs in enumerate(self.convs):
            width = self.width * 2 ** min(i, 3)
            x = stage(width, convs, name=f"stage{i + 1}", **common)(x, train)
            features.append(x)
            if i < 4:
                x = pool.max_pool(x, 2, stride=2, padding=(0, 1))  # sizes are rounded up
        x = pool.max_pool(x, 3)
        common["activation"] = nn.relu
        x = layers.ConvNorm(self.fc_width, dilation=6, name="fc6", **common)(x, train)
        return features[3], layers.ConvNorm(self.fc_width, 1, name="fc7", **common)(x, train)
