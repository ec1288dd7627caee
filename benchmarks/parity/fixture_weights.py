"""The made-up weights of the parity fixtures, by their rule (README.md of the fixtures).

An array depends only on its key in the reference's state dict, its shape there and the seed of the
case: the raw bits of NumPy's Philox generator are scaled into a range that key and shape determine.
The ranges keep activations of order one and spread scores and boxes.
"""

import hashlib
import math
import re
import zlib

import numpy as np

from detlab import errors

# Part of a key -> (factor of the weight's range, centre of the bias's range).  The first match
# counts; keys without one have (1, 0).
RANGES = (
    (r"backbone\.layer\d\.\d+\.bn3", 0.3, 0.0),
    (r"conv_res_block\d\.res\d\.conv2\.bn", 0.3, 0.0),
    (r"backbone\.(stem|hourglass_modules|inters)\..*bn2", 0.3, 0.0),
    (r"backbone\.(remap_convs|conv1x1s)", 0.5, 0.0),
    (r"_heat\.\d\.1\.conv", 0.4, -1.5),
    (r"_off\.\d\.1\.conv", 0.2, 0.5),
    (r"_emb\.\d\.1\.conv", 0.07, 0.0),
    (r"_guiding_shift\.\d\.1\.conv", 0.2, 0.0),
    (r"_centripetal_shift\.\d\.1\.conv", 0.4, 1.2),
    (r"reppoints_(sem|hem_.._score)_out", 0.7, -1.5),
    (r"reppoints_hem_.._offset_out", 0.3, 0.5),
    (r"conv_loc", 2.0, -4.0),
    (r"conv_shape", 0.2, 0.0),
    (r"neck\..*(lateral|fpn)_convs", 0.7, 0.0),
    (r"retina_cls|atss_cls|gfl_cls|vfnet_cls\.|conv_cls|reppoints_cls_out", 0.7, -1.5),
    (r"bbox_head\.conv_reg", 0.4, 2.0),
    (r"bbox_head\.cls_convs\.\d\.0\.", 0.8, 0.0),
    (r"bbox_head\.reg_convs\.\d\.0\.", 0.3, 0.0),
    (r"convs_pred", 1.5, -1.5),
    (r"vfnet_reg\.", 0.25, -1.0),
    (r"retina_reg|atss_reg|conv_reg|vfnet_reg_refine\.|rpn_reg", 0.25, 0.0),
    (r"rpn_cls|fc_cls", 0.7, 0.0),
    (r"fc_reg", 0.4, 0.0),
)


def make(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The float32 array of one parameter or buffer.

    Args:
      key: name in the PyTorch state dict.
      shape: its shape there; convolutions are OIHW, linear layers OI.
      seed: of the case.
    """
    low, high = _range(key, shape)
    return uniform(key, math.prod(shape), seed, low, high).reshape(shape)


def uniform(key: str, count: int, seed: int, low: float, high: float) -> np.ndarray:
    """[count] float32 in low..high from 24 bits each of NumPy's Philox, by key and seed only."""
    generator = np.random.Philox(key=[zlib.crc32(key.encode()), seed])
    raw = np.atleast_1d(generator.random_raw((count + 1) // 2)).astype("<u8").view("<u4")
    unit = (raw[:count] >> 8).astype(np.float32) * np.float32(2**-24)
    return np.float32(low) + np.float32(high - low) * unit


def state_dict(info: dict) -> dict[str, np.ndarray]:
    """All tensors of a case, with the reference's names and layouts.

    Args:
      info: the JSON of the case: `state_dict`, `kept`, `kept_values`, `seed`, `weights_sha256`.
    Raises:
      UserError: the tensors are not those that the case was recorded with.
    """
    tensors, digest = {}, hashlib.sha256()
    for key, shape, dtype in info["state_dict"]:
        if key in info["kept"]:  # as in a new model; tensors not listed are counters at 0
            value = info["kept_values"].get(key, 0)
            tensors[key] = np.broadcast_to(np.asarray(value, dtype), shape)
            continue
        tensors[key] = make(key, tuple(shape), info["seed"])
        digest.update(tensors[key].tobytes())
    if digest.hexdigest() != info["weights_sha256"]:
        raise errors.UserError(
            f"case {info['name']}: the weights made by its rule have SHA-256 {digest.hexdigest()},"
            f" but weights_sha256 is {info['weights_sha256']}; its seed, its state_dict or the rule"
            " has changed."
        )
    return tensors


def _range(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Lowest and highest value."""
    fitting = ((factor, centre) for part, factor, centre in RANGES if re.search(part, key))
    factor, centre = next(fitting, (1.0, 0.0))
    name = key.rpartition(".")[2]
    if name == "running_mean":
        return -0.1, 0.1
    if name == "running_var":
        return 0.5, 1.5
    if name in ("bias", "moment_transfer"):
        return centre - 0.1, centre + 0.1
    if name == "scale" or math.prod(shape) == 1:  # learned scalars
        return 0.8, 1.2
    if len(shape) == 1:  # of a norm
        low, high = (10.0, 20.0) if "l2_norm" in key else (0.5, 1.0)
        return factor * low, factor * high
    bound = factor * math.sqrt(6.0 / (math.prod(shape) // shape[0]))  # He, uniform, fan in
    return -bound, bound
