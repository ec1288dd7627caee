"""VGG16 (arXiv:1409.1556) without its classifier, as SSD uses it (arXiv:1512.02325, section 3).

The last pooling has stride 1, and the first two linear layers of the classifier are subsampled to
convolutions, the first of them dilated.  Other poolings round sizes up.

Parameter paths: `stage1/conv1`, ..., `stage5/conv3`, `fc6`, `fc7`.
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
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        for i in range(self.convs):
            x = nn.relu(layers.Conv(self.width, dtype=self.dtype, name=f"conv{i + 1}")(x))
        return x


class VGG(nn.Module):
    """Images to conv4_3, of stride 8, and fc7, of stride 16.

    `remat` is as in `resnet.ResNet`.
    """

    convs: Sequence[int] = (2, 2, 3, 3, 3)  # of each stage: VGG16
    width: int = 64  # of stage 1; each stage has twice the channels, up to eight times as many
    fc_width: int = 1024
    fc6_dilation: int = 6
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images):
        """[B, H, W, 3] normalised images -> [C4, C5], each [B, H/s, W/s, channels]."""
        stage = nn.remat(Stage) if self.remat else Stage
        x, features = images, []
        for i, convs in enumerate(self.convs):
            width = self.width * 2 ** min(i, 3)
            x = stage(width, convs, dtype=self.dtype, name=f"stage{i + 1}")(x)
            features.append(x)
            if i < 4:
                x = pool.max_pool(x, 2, stride=2, padding=(0, 1))  # sizes are rounded up
        x = pool.max_pool(x, 3)
        fc6 = layers.Conv(self.fc_width, dilation=self.fc6_dilation, dtype=self.dtype, name="fc6")
        fc7 = layers.Conv(self.fc_width, 1, dtype=self.dtype, name="fc7")
        return features[3], nn.relu(fc7(nn.relu(fc6(x))))
