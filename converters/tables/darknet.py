"""Darknet's `.weights` -> detector `darknet`; the table follows from the cfg.

`readers.darknet` names tensors "<number of the layer>.<bias | scale | mean | var | weight>".  The
bias of a layer with a norm is the norm's.  For a network with a [region] head there is also "seen",
see `counts`.
"""

import numpy as np

from detlab.converters import mapping
from detlab.darknet import cfg as darknet_cfg
from detlab.darknet import networks as darknet_networks
from detlab.losses import darknet_region

_WITH_NORM = (
    ("bias", "params", "norm/bias"),
    ("scale", "params", "norm/scale"),
    ("mean", "batch_stats", "norm/mean"),
    ("var", "batch_stats", "norm/var"),
)


def table(network: darknet_cfg.Network, first_layers: int | None = None) -> mapping.Table:
    """The table of a network, or of its first layers for a cut-off file."""
    rules, subtrees = [], []
    heads = darknet_networks.heads(network)
    predicting = [darknet_cfg.owner(network, number - 1) for number in heads]
    for number, layer in enumerate(network.layers[:first_layers]):
        path = f"layers/layer{number}"
        if isinstance(layer, darknet_cfg.Shortcut) and layer.weights_type != "none":
            subtrees.append(f"params/{path}")
            rules.append(mapping.Rule(rf"{number}\.weight", f"params/{path}/weights"))
        if not isinstance(layer, darknet_cfg.Convolutional) or layer.share_index is not None:
            continue
        subtrees.append(f"params/{path}")
        vectors = (("bias", "params", "bias"),)
        if layer.batch_normalize:
            vectors = _WITH_NORM
            subtrees.append(f"batch_stats/{path}")
        for theirs, collection, ours in vectors:
            rules.append(mapping.Rule(rf"{number}\.{theirs}", f"{collection}/{path}/{ours}"))
        kernel = ("conv_oihw_to_hwio",)
        rules.append(mapping.Rule(rf"{number}\.weight", f"params/{path}/kernel", kernel))
    class_leaves = [f"params/layers/layer{number}/.*" for number in predicting]
    if darknet_networks.has_region(network):
        subtrees.append("loss_state")
        rules.append(mapping.Rule("seen", "loss_state/seen"))
        class_leaves.append("loss_state/seen")  # a head for other classes is trained from the start
    return mapping.Table("darknet", tuple(subtrees), tuple(rules), (), tuple(class_leaves))


def counts(network: darknet_cfg.Network, seen: int) -> dict[str, np.ndarray]:
    """The number of images seen, of a file's header, as far as the loss of a [region] counts."""
    if not darknet_networks.has_region(network):
        return {}
    return {"seen": np.float32(min(seen, darknet_region.EARLY_IMAGES))}
