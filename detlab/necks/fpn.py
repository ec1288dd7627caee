"""Feature Pyramid Network (arXiv:1612.03144) with the extra levels of its successors.

Parameter paths: `lateral3/{conv,norm}`, `output3/{conv,norm}`, ...; the number is the pyramid
level; level l has stride 2^l.
"""

import jax.numpy as jnp
from flax import linen as nn

from detlab import layers

EXTRA = ("input", "output", "output_relu", "pool")
xavier_uniform = nn.initializers.xavier_uniform()


class FPN(nn.Module):
    """Top-down pyramid over C2..C5 with `num_levels` outputs of equal width.

    `extra` says where the levels above P5 come from:
      input        P6 = conv3x3/2(C5), P7 = conv3x3/2(P6): RetinaNet, Libra, RepPoints
      output       P6 = conv3x3/2(P5), P7 = conv3x3/2(P6): ATSS, GFL, PAA
      output_relu  the same with P7 = conv3x3/2(relu(P6)), no relu before P6: FCOS, VFNet
      pool         every second cell of the level below, no parameters: Faster R-CNN
    """

    width: int = 256
    start_level: int = 3  # 3: from P3 up; 2: from P2 up, as in two-stage detectors
    num_levels: int = 5
    extra: str = "input"
    norm: str = "none"
    norm_groups: int = 32
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features, train: bool):
        """[C2, C3, C4, C5] -> (P_start, ...), each [B, Hl, Wl, width]."""
        if self.extra not in EXTRA:
            raise ValueError(f"FPN extra {self.extra!r} is not one of {', '.join(EXTRA)}")

        def conv(name, kernel_size=3, stride=1):
            return layers.ConvNorm(
                self.width,
                kernel_size,
                stride,
                norm=self.norm,
                norm_groups=self.norm_groups,
                kernel_init=xavier_uniform,
                dtype=self.dtype,
                name=name,
            )

        used = range(self.start_level, 6)  # levels with a backbone map
        merged = {}
        for level in reversed(used):
            merged[level] = conv(f"lateral{level}", 1)(features[level - 2], train)
            if level < 5:
                merged[level] += layers.upsample(merged[level + 1], merged[level].shape[1:3])
        outputs = [conv(f"output{level}")(merged[level], train) for level in used]
        top = features[-1] if self.extra == "input" else outputs[-1]
        for level in range(6, self.start_level + self.num_levels):
            if self.extra == "pool":
                outputs.append(outputs[-1][:, ::2, ::2])
                continue
            if self.extra == "output_relu" and level > 6:
                top = nn.relu(top)
            top = conv(f"output{level}", stride=2)(top, train)
            outputs.append(top)
        return tuple(outputs[: self.num_levels])


def of(module: nn.Module, extra: str) -> FPN:
    """The neck of a detector with the fields `neck_width`, `strides` and `dtype`."""
    return FPN(module.neck_width, num_levels=len(module.strides), extra=extra, dtype=module.dtype)
