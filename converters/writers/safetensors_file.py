"""State dicts as safetensors files, through their own library."""

import json
import os
from typing import Mapping, Sequence

import numpy as np
from safetensors import numpy as safetensors_numpy


def write(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    class_names: Sequence[str] | None = None,
) -> None:
    """Writes a safetensors file; the same tensors give the same bytes.

    Args:
      path: the file, replaced if it exists.
      tensors: by name, of any shape and strides; the format orders them by type and name.
      class_names: kept in the metadata as a JSON list, where `readers.safetensors_file` finds it.
    Raises:
      OSError: the file cannot be written.
    """
    # One entry at most: the library writes several in a random order.
    metadata = {"class_names": json.dumps(list(class_names))} if class_names else None
    # The library writes bytes from the first one on, whatever the strides.
    dense = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    safetensors_numpy.save_file(dense, os.fspath(path), metadata)
