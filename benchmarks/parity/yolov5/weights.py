"""The made-up weights of a case of YOLOv5, by their rule."""

import math
import re

import numpy as np

from benchmarks.parity import fixture_weights


def tensors(info: dict) -> dict[str, np.ndarray]:
    """The state dict of a case by its rule, without tensors that keep their initial values."""
    rule = info["weights"]
    made = {}
    for key, shape in info["state_dict"]:
        name = key.rpartition(".")[2]
        if name in ("num_batches_tracked", "anchors", "anchor_grid"):
            continue
        made[key] = _tensor(
            key,
            tuple(shape),
            rule["seed"],
            info["heads"][0]["shape"][-1],
            rule["head_gain"],
            rule.get("conv_gain", 2.3),
        )
    return made


def _tensor(key, shape, seed, per_anchor, head_gain, conv_gain) -> np.ndarray:
    """One array; its range depends on the last part of its name and, for kernels, on the inputs."""
    name, count = key.rpartition(".")[2], math.prod(shape)
    is_head = re.fullmatch(r"model\.\d+\.m\.\d+\.(weight|bias)", key)
    if name == "bias" and is_head:
        value = fixture_weights.uniform(key, count, seed, -0.5, 0.5).reshape(-1, per_anchor)
        value[:, 4] -= np.float32(4)
        value[:, 5:] -= np.float32(2)
        return value.reshape(-1)
    if name == "running_mean":
        low, high = -0.1, 0.1
    elif name == "running_var":
        low, high = 0.5, 1.5
    elif name == "bias":
        low, high = -0.3, 0.3
    elif len(shape) == 1:  # of a norm; those that end a residual branch are small
        damped = 0.1 if re.search(r"\.m\.\d+\.cv2\.bn\.weight$", key) else 1.0
        low, high = 0.8 * damped, 1.2 * damped
    else:
        gain = head_gain if is_head else conv_gain
        high = float(np.sqrt(3.0 * gain / (count // shape[0])))
        low = -high
    return fixture_weights.uniform(key, count, seed, low, high).reshape(shape)
