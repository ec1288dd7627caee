"""Reads weight files of any format, recognised by their contents and never by their suffix."""

import os
from collections.abc import Callable, Mapping, Sequence

from detlab.converters.readers import (
    archives,
    contents,
    darknet,
    npz_file,
    safetensors_file,
    torch_file,
)
from detlab.darknet import cfg as darknet_cfg


def read(
    path: str | os.PathLike,
    network: darknet_cfg.Network | None = None,
    choose: Callable[[Mapping[str, Sequence[str]]], str] | None = None,
) -> contents.Contents:
    """Reads a weight file with the reader of its format.

    Args:
      path: a PyTorch, safetensors or npz file, or darknet's `.weights` of `network`.
      network: of a `.weights` file, which has no names; None for other files.
      choose: the entry of a PyTorch file that holds the weights, see `torch_file.read`.
    Raises:
      ReadError: one sentence that names the file, and what it looks like if its format is unknown.
    """
    with contents.reading(path, "weight file", contents.ReadError):
        with open(path, "rb") as file:
            head = file.read(512)
            is_zip = head.startswith(b"PK\x03\x04")
            if is_zip:
                names = archives.open_zip(file, os.fstat(file.fileno()).st_size).namelist()
    if network is not None:
        header, tensors = darknet.read(path, network)
        return contents.Contents("darknet", tensors, None, header._asdict())
    if is_zip and any(name.endswith(".npy") for name in names):
        return npz_file.read(path)
    if is_zip or head.startswith(b"\x80"):
        return torch_file.read(path, choose)
    if head[8:9] == b"{":
        return safetensors_file.read(path)
    looks = contents.looks_like(head)
    if contents.is_darknet(head):
        raise contents.ReadError(f"{path}: looks like {looks}, which needs its cfg: add --cfg CFG.")
    raise contents.ReadError(f"{path}: not a weight file of a known format; it looks like {looks}.")
