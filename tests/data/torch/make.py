"""Makes the files of this folder with PyTorch 2.13 (CPU): `python tests/data/torch/make.py`.

Not run by the tests, which need no PyTorch.  `expected.npz` holds what the tensors of every state
dict are, as PyTorch itself sees them (bfloat16 as float32).
"""

import collections
import pathlib

import numpy as np
import torch
from torch import nn

FOLDER = pathlib.Path(__file__).parent


class Block(nn.Module):
    """A module of a class that the reader cannot know."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("scratch", torch.ones(2), persistent=False)


def state_dict():
    """Every supported dtype; shared, transposed, strided, expanded, empty and scalar tensors."""
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    tensors = collections.OrderedDict()
    for dtype in ("float64", "float32", "float16", "bfloat16"):
        tensors[dtype] = torch.randn(2, 3).to(getattr(torch, dtype))
    for dtype in ("int64", "int32", "int16", "int8", "uint8"):
        tensors[dtype] = torch.arange(5).to(getattr(torch, dtype))
    tensors["bool"] = torch.tensor([True, False, True])
    tensors["base"] = base
    tensors["row"] = base[2]
    tensors["transposed"] = base.T
    tensors["strided"] = base[1::2, ::3]
    tensors["expanded"] = torch.tensor([[1.0], [2.0]]).expand(2, 5)
    tensors["channels_last"] = torch.randn(1, 2, 3, 4).to(memory_format=torch.channels_last)
    tensors["scalar"] = torch.tensor(7)
    tensors["empty"] = torch.zeros(0, 3)
    tensors["parameter"] = nn.Parameter(torch.randn(3))
    return tensors


def main():
    tensors = state_dict()
    arrays = {name: (t.float() if t.dtype == torch.bfloat16 else t) for name, t in tensors.items()}
    arrays = {name: t.detach().contiguous().numpy() for name, t in arrays.items()}
    np.savez_compressed(FOLDER / "expected.npz", **arrays)
    torch.save(tensors, FOLDER / "zip.pth")
    torch.save(tensors, FOLDER / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(tensors, FOLDER / "protocol4.pth", pickle_protocol=4)

    block = Block()
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1, momentum=0.9)
    checkpoint = {
        "meta": {"CLASSES": ("circle", "square"), "epoch": 12},
        "state_dict": {f"module.{name}": t for name, t in block.state_dict().items()},
        "optimizer": optimizer.state_dict(),
    }
    torch.save(checkpoint, FOLDER / "checkpoint.pth")
    torch.save({"epoch": 3, "model": block.half()}, FOLDER / "module.pt")
    module = {name: t.numpy() for name, t in block.state_dict().items()}
    np.savez_compressed(FOLDER / "expected_module.npz", **module)


if __name__ == "__main__":
    main()
