"""Guided anchoring: one anchor of predicted shape per cell (arXiv:1901.03278, section 3).

Feature adaption and the anchors themselves serve both heads: that of a dense detector, and that of
a region proposal network.
"""

import functools
import math

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from detlab import layers
from detlab.heads import dense
from detlab.ops import coders

# A guided anchor may be a million times as large or as small as its square, as in the reference.
MAX_LOG_RATIO = abs(math.log(1e-6))


class FeatureAdaption(nn.Module):
    """Makes features fit the shapes of anchors ("Anchor-Guided Feature Adaptation").

    A deformable convolution reads every cell at places that its anchor's shape decides.

    Parameter paths: `offsets`, a 1x1 convolution of the shapes, and `deform`.
    """

    width: int
    deform_groups: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features, shapes):
        """(P3, ...), each [B, Hl, Wl, D], and shapes [B, Hl, Wl, 2] -> [B, Hl, Wl, width] each.

        The shapes get no gradient here.
        """
        offsets = layers.Conv(
            self.deform_groups * 3 * 3 * 2,
            1,
            use_bias=False,
            kernel_init=nn.initializers.normal(0.1),
            dtype=self.dtype,
            name="offsets",
        )
        deform = layers.DeformConv(
            self.width,
            deform_groups=self.deform_groups,
            kernel_init=layers.normal_001,
            dtype=self.dtype,
            name="deform",
        )
        places = tuple(offsets(lax.stop_gradient(x)) for x in shapes)
        return tuple(nn.relu(x) for x in deform(features, places))


class GuidedAnchorHead(nn.Module):
    """Two towers, locations and shapes of anchors, and predictions from adapted features.

    Parameter paths: `cls_conv0/conv`, ..., `box_conv0/conv`, ..., `location_logits`, `shapes`,
    `cls_adaption` and `box_adaption` (`FeatureAdaption`), `cls_logits`, `box_deltas`.
    """

    num_classes: int
    num_convs: int = 4
    width: int = 256
    deform_groups: int = 4
    prior_probability: float = 0.01  # of a class, and of a location
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features, train: bool):
        """(P3, ...) -> {name: tuple of maps [B, Hl, Wl, channels], float32}.

        cls_logits has C channels, box_deltas 4, location_logits 1, and shapes 2: dw, dh.
        """
        outputs = functools.partial(dense.outputs_of, dtype=self.dtype)

        def adapted(name, hidden):
            adaption = FeatureAdaption(self.width, self.deform_groups, self.dtype, name=name)
            return adaption(hidden, shapes)

        cls, box = (
            dense.tower(name, self.num_convs, self.width, features, train, dtype=self.dtype)
            for name in ("cls", "box")
        )
        prior = layers.prior_bias(self.prior_probability)
        location_logits = outputs("location_logits", cls, 1, 1, prior)
        shapes = outputs("shapes", box, 2, 1)
        cls, box = adapted("cls_adaption", cls), adapted("box_adaption", box)
        return {
            "cls_logits": outputs("cls_logits", cls, self.num_classes, 3, prior),
            "box_deltas": outputs("box_deltas", box, 4, 3),
            "location_logits": location_logits,
            "shapes": shapes,
        }


class GuidedRPNHead(nn.Module):
    """A 3x3 convolution, locations and shapes of anchors, and predictions from adapted features.

    Parameter paths: `conv/conv`, `location_logits`, `shapes`, `adaption` (`FeatureAdaption`),
    `cls_logits`, `box_deltas`.
    """

    width: int = 256
    deform_groups: int = 4
    prior_probability: float = 0.01  # of a location
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features, train: bool):
        """(P2, ...) -> {name: tuple of maps [B, Hl, Wl, channels], float32}.

        cls_logits has 1 channel, box_deltas 4, location_logits 1, and shapes 2: dw, dh.
        """
        outputs = functools.partial(dense.outputs_of, dtype=self.dtype)
        conv = layers.ConvNorm(
            self.width,
            activation=nn.relu,
            kernel_init=layers.normal_001,
            dtype=self.dtype,
            name="conv",
        )
        hidden = tuple(conv(x, train) for x in features)
        prior = layers.prior_bias(self.prior_probability)
        location_logits = outputs("location_logits", hidden, 1, 1, prior)
        shapes = outputs("shapes", hidden, 2, 1)
        adaption = FeatureAdaption(self.width, self.deform_groups, self.dtype, name="adaption")
        adapted = adaption(hidden, shapes)
        return {
            "cls_logits": outputs("cls_logits", adapted, 1, 1),
            "box_deltas": outputs("box_deltas", adapted, 4, 1),
            "location_logits": location_logits,
            "shapes": shapes,
        }


def of(module: nn.Module) -> GuidedAnchorHead:
    """The head of a detector with fields of these names, `head_convs` and `head_width`."""
    return GuidedAnchorHead(
        module.num_classes,
        module.head_convs,
        module.head_width,
        module.deform_groups,
        module.prior_probability,
        module.dtype,
    )


def guided_anchors(squares, shapes, stds: tuple[float, float] = (1.0, 1.0)):
    """The anchors of predicted shapes ("Anchor Shape Prediction").

    Args:
      squares: [N, 4] xyxy px, one around the point of each cell.
      shapes: [..., N, 2] dw, dh: logarithms of the ratios to the sides of the square, normalised.
      stds: factors of dw and dh.
    Returns:
      [..., N, 4] xyxy px, centred like the squares, not clipped to the image.
    """
    deltas = jnp.concatenate([jnp.zeros_like(shapes), shapes], axis=-1)
    return coders.decode_deltas(
        squares, deltas, stds=(1.0, 1.0, *stds), max_log_ratio=MAX_LOG_RATIO
    )
