"""Convolutional towers shared by all pyramid levels, as in dense one-stage detectors."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from detlab import layers


class TwoTowerHead(nn.Module):
    """A tower for classes and one for boxes, each followed by its output convolutions.

    Parameter paths: `cls_conv0/{conv,norm}`, ..., `box_conv0/...`, and one convolution under each
    output's own name.

    Attributes:
      cls_outputs: name -> (channels, bias initialiser) of the maps predicted from the class tower.
      box_outputs: the same for the box tower.
      conv_bias: whether tower convolutions have a bias; None: only without a norm.
    """

    cls_outputs: Mapping[str, tuple[int, Callable]]
    box_outputs: Mapping[str, tuple[int, Callable]]
    num_convs: int = 4
    width: int = 256
    norm: str = "none"
    norm_groups: int = 32
    conv_bias: bool | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features, train: bool):
        """(P3, ...) -> {output name: tuple of maps [B, Hl, Wl, channels], float32}."""
        maps = {}
        for name, outputs in (("cls", self.cls_outputs), ("box", self.box_outputs)):
            hidden = tower(
                name,
                self.num_convs,
                self.width,
                features,
                train,
                norm=self.norm,
                norm_groups=self.norm_groups,
                use_bias=self.conv_bias,
                dtype=self.dtype,
            )
            for output, (channels, bias_init) in outputs.items():
                maps[output] = outputs_of(
                    output, hidden, channels, bias_init=bias_init, dtype=self.dtype
                )
        return maps


def tower(name: str, num_convs: int, width: int, features, train: bool, **options: Any):
    """Convolutions, each with its norm and a ReLU, that all levels share.

    Call it in a compact method: `NAME_conv0/{conv,norm}`, ... are layers of that module.

    Args:
      name: begins the names of the layers.
      num_convs: how many.
      width: their channels.
      features: (P3, ...), each [B, Hl, Wl, D].
      train: whether norms use the statistics of the batch.
      options: of `layers.ConvNorm`.
    Returns:
      (P3, ...), each [B, Hl, Wl, width].
    """
    for i in range(num_convs):
        conv = layers.ConvNorm(
            width,
            activation=nn.relu,
            kernel_init=layers.normal_001,
            name=f"{name}_conv{i}",
            **options,
        )
        features = tuple(conv(x, train) for x in features)
    return features


def outputs_of(
    name: str,
    features,
    channels: int,
    kernel_size: int = 3,
    bias_init: Callable[..., Any] = nn.initializers.zeros,
    dtype: Any = jnp.float32,
):
    """A convolution that all levels share and that predicts: its maps are float32.

    Call it in a compact method: NAME is a layer of that module.

    Args:
      name: of the layer.
      features: (P3, ...), each [B, Hl, Wl, D].
      channels: of the maps.
      kernel_size: of the convolution.
      bias_init: of its bias.
      dtype: in which it is computed.
    Returns:
      (P3, ...), each [B, Hl, Wl, channels].
    """
    conv = layers.Conv(
        channels,
        kernel_size,
        kernel_init=layers.normal_001,
        bias_init=bias_init,
        dtype=dtype,
        name=name,
    )
    return tuple(conv(x).astype(jnp.float32) for x in features)


def of(
    module: nn.Module,
    cls_outputs: Mapping,
    box_outputs: Mapping,
    norm: str = "none",
    **options: Any,
) -> TwoTowerHead:
    """The head of a detector with the fields `head_convs`, `head_width` and `dtype`.

    With group norms, it has the field `norm_groups` too.
    """
    if norm == "group":
        options["norm_groups"] = module.norm_groups
    return TwoTowerHead(
        cls_outputs,
        box_outputs,
        num_convs=module.head_convs,
        width=module.head_width,
        norm=norm,
        dtype=module.dtype,
        **options,
    )
