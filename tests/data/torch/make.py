"""Makes the files of this folder with PyTorch 2.13 (CPU): `python tests/data/torch/make.py`.

Not run by the tests, which need neither PyTorch nor the classes below.  `expected.npz` holds the
tensors of every state dict as PyTorch itself reads them (bfloat16 and float8 as float32).
"""

import collections
import json
import pathlib
from unittest import mock

import numpy as np
import torch
from safetensors import torch as safetensors_torch
from torch import nn

FOLDER = pathlib.Path(__file__).parent
NARROW = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)  # unknown to NumPy


class Block(nn.Module):
    """A module whose class the reader cannot know."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.names = ["circle", "square"]  # as YOLOv5's Model keeps them

    def forward(self, x):
        return self.norm(self.conv(x))


def state_dict():
    """Every supported dtype; shared, transposed, strided, expanded, empty and scalar tensors."""
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    tensors = collections.OrderedDict()
    for dtype in ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"):
        tensors[dtype] = torch.randn(2, 3).to(getattr(torch, dtype))
    for dtype in ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"):
        tensors[dtype] = torch.arange(5).to(getattr(torch, dtype))
    for dtype in ("complex64", "complex128"):
        tensors[dtype] = torch.randn(3, dtype=getattr(torch, dtype))
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
    arrays = {name: (t.float() if t.dtype in NARROW else t) for name, t in tensors.items()}
    arrays = {name: t.detach().contiguous().numpy() for name, t in arrays.items()}
    np.savez_compressed(FOLDER / "expected.npz", **arrays)
    torch.save(tensors, FOLDER / "zip.pth")
    torch.save(tensors, FOLDER / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(tensors, FOLDER / "protocol4.pth", pickle_protocol=4)
    known = {name: t for name, t in tensors.items() if t.dtype != torch.complex128}
    safetensors_torch.save_file(
        {name: t.detach().clone().contiguous() for name, t in known.items()},
        FOLDER / "tensors.safetensors",  # a format without complex128
        metadata={"format": "pt", "class_names": json.dumps(["circle", "square"])},
    )

    block = Block()
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1, momentum=0.9)
    block(torch.randn(1, 3, 8, 8)).square().mean().backward()
    optimizer.step()  # fills the momentum
    checkpoint = {
        "meta": {"CLASSES": ("circle", "square"), "epoch": 12, "mmdet_version": "2.28.0"},
        "state_dict": {f"module.{name}": t for name, t in block.state_dict().items()},
        "optimizer": optimizer.state_dict(),
    }
    torch.save(checkpoint, FOLDER / "checkpoint.pth")

    # YOLOv5: pickled modules in half precision, averaged (`ema`) and trained (`model`).
    block = block.half()
    module = {name: t.numpy() for name, t in block.state_dict().items()}
    np.savez_compressed(FOLDER / "expected_module.npz", **module)
    trained = Block()
    trained.names = {0: "wrong"}
    torch.save({"epoch": 3, "model": block}, FOLDER / "module.pt")
    averaged = {"epoch": 3, "ema": block, "model": trained.half(), "updates": 7}
    torch.save(averaged, FOLDER / "ema.pt")
    # The legacy format also stores the source code of the classes; here a word stands for it.
    source = mock.patch.object(
        torch.serialization, "get_source_lines_and_file", lambda _: (["source"], 1, "file.py")
    )
    with source:
        torch.save(
            {"epoch": 3, "model": block},
            FOLDER / "legacy_module.pt",
            _use_new_zipfile_serialization=False,
        )


if __name__ == "__main__":
    main()
