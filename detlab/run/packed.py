"""A weights folder as one can host it: safetensors, JSON and a card; nothing in it is executed.

    model.safetensors   the leaves by path, such as `params/backbone/stem/conv/kernel`
    config.json         the resolved config, class names, figures, where the weights come from
    README.md           the card, for people

`detlab convert --pack` writes such a folder; whatever takes a weights folder reads it.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.numpy
from flax import traverse_util

import detlab
from detlab import errors, files

WEIGHTS, CONFIG, CARD = FILES = ("model.safetensors", "config.json", "README.md")
_FORMAT = "detlab"


def is_packed(folder: pathlib.Path) -> bool:
    """Whether a folder holds weights in this form, complete or not."""
    return (folder / WEIGHTS).is_file() or (folder / CONFIG).is_file()


def write(
    folder: pathlib.Path, params: Any, state: Any, info: Mapping[str, Any], card: str
) -> None:
    """Writes a new folder.

    Args:
      params, state: trees of NumPy arrays.
      info: what `checkpoint.Weights.info` has, with "config".
      card: text of README.md.
    Raises:
      UserError: the folder exists or cannot be written.
    """
    if folder.exists():
        raise errors.UserError(f"{folder} already exists; name a new folder with --output.")
    tree = traverse_util.flatten_dict({"params": params, **state}, sep="/")
    content = {"format": _FORMAT, "detlab": detlab.__version__, **info}
    try:
        folder.mkdir(parents=True)
        safetensors.numpy.save_file(tree, folder / WEIGHTS, metadata={"format": _FORMAT})
    except OSError as error:
        raise errors.UserError(f"{folder} cannot be written: {error.strerror or error}.") from error
    files.write_json(folder / CONFIG, content)
    files.write_text(folder / CARD, card)


def read(folder: pathlib.Path) -> tuple[Any, Any, dict[str, Any]]:
    """(params, state, info) of a folder.

    Raises:
      UserError: a file is missing, damaged, or not detlab's.
    """
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise errors.UserError(
                f"{folder} has no {name}, so it is no complete weights folder of detlab; copy or"
                " download it again."
            )
    info = _read_config(folder / CONFIG)
    try:
        leaves = safetensors.numpy.load_file(folder / WEIGHTS)
    except (safetensors.SafetensorError, OSError, KeyError) as error:
        raise errors.UserError(
            f"{folder / WEIGHTS} is damaged ({errors.first_line(error)}); copy or download it"
            " again."
        ) from error
    try:
        tree = traverse_util.unflatten_dict(leaves, sep="/")
    except (TypeError, AttributeError):  # a/b is an array and a/b/c another
        tree = {}
    params = tree.pop("params", None)
    if not isinstance(params, dict) or not all(isinstance(part, dict) for part in tree.values()):
        raise errors.UserError(
            f"{folder / WEIGHTS} has no params/..., so it holds no weights of detlab; if it is a"
            " weight file of other code, convert it with `detlab convert`."
        )
    return params, tree, info


def _read_config(path: pathlib.Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise errors.UserError(
            f"{path} is no JSON ({errors.first_line(error)}); copy or download it again."
        ) from error
    if not isinstance(info, dict) or info.get("format") != _FORMAT:
        raise errors.UserError(
            f"{path} is not that of a weights folder of detlab (`detlab convert --pack` writes"
            " one); name another folder."
        )
    names = info.get("class_names", [])
    strings = isinstance(names, list) and all(isinstance(name, str) for name in names)
    config = info.get("config")
    whole = isinstance(config, dict) and {"detector", "model", "data", "predict"} <= config.keys()
    if not strings or not whole:
        wrong = "class_names" if not strings else "config"
        raise errors.UserError(f"{path}: its `{wrong}` is damaged; copy or download it again.")
    return info
