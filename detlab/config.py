"""Configs from files: `path_or_name[:variant]` plus `--config.key=value` overrides.

A config file defines `get_config()`, or `get_config(variant)` if it has variants, which returns an
`ml_collections.ConfigDict`.  An optional `VARIANTS` lists all variants.  The first part is a path
if such a file exists, else the name of an experiment that ships with detlab, so programs run from
any folder.
"""

import ast
import difflib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import os
import pathlib
import re
import sys
import traceback
import types as python_types
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from detlab import checks, errors, experiments, paths

# Keys that older configs lack, with values that keep the behaviour of those configs; only `exif`
# does not: data that it changes were refused, or had boxes beside their objects.
LATER = {
    "data": {
        "rounding": "half_up",
        "demo_rounding": "half_up",
        "eval_shrink": "linear",
        "exif": "auto",
    },
    "eval": {"views": ("image",), "rectangles": 0},
    "predict": {"threshold": 0.3, "top_k": 100, "rectangles": 0, "shrink": "linear", "model": {}},
}

# Keys of `data` that are files or folders.
PATHS = ("root", "train_images", "train_annotations", "eval_images", "eval_annotations")


def load(name: str, overrides: Mapping[str, str] | None = None) -> config_dict.ConfigDict:
    """The config that `name` selects, with overrides applied and `expand_paths`.

    Args:
      name: a path such as `experiments/retinanet_voc.py` or the name of a shipped experiment,
        `retinanet_voc`; either may end in `:variant`.
      overrides: dotted key -> text as typed on the command line, parsed by the type of the key's
        current value.
    Raises:
      UserError: no such file, variant or key, or text that does not parse as the key's type.
    """
    name, _, variant = name.partition(":")
    path = _find(name)
    config = _get_config(path, variant)
    for key, text in (overrides or {}).items():
        override(config, key, text)
    expand_paths(config)
    return config


def variants(name: str) -> list[str]:
    """The variants that a config lists, without the empty one.

    Raises:
      UserError: no such file, or importing it fails.
    """
    return _variants(_import(_find(name)))


def shipped() -> list[str]:
    """Names of the experiments that ship with detlab."""
    hidden = ("__init__", "common")
    return sorted(p.stem for p in _experiments_folder().glob("*.py") if p.stem not in hidden)


def stem(name: str) -> str:
    """The name of a run of config `name`: the file stem, plus `_variant` if there is one."""
    name, _, variant = name.partition(":")
    base = pathlib.Path(name).stem
    return f"{base}_{variant}" if variant else base


def override(config: config_dict.ConfigDict, key: str, text: str) -> None:
    """Sets `config.key` from text, parsed by the type of its current value.

    `model.<field>` and `predict.model.<field>` may be new: a config lists only the fields that
    differ from the detector's defaults.  `detlab.contract.build` rejects unknown ones.
    """
    *parents, leaf = key.split(".")
    node = config
    for depth, parent in enumerate(parents):
        _check_key(node, parent, key)
        node = node[parent]
        if not isinstance(node, config_dict.ConfigDict):
            where = ".".join(parents[: depth + 1])
            raise errors.UserError(
                f"config.{where} is a value and has no keys; config.{key} cannot be set."
            )
    if parents in (["model"], ["predict", "model"]) and leaf not in node:
        node[leaf] = _read(text, None, key)
        return
    _check_key(node, leaf, key)
    present = node[leaf]
    if isinstance(present, config_dict.ConfigDict):
        inside = ", ".join(f"config.{key}.{k}" for k in sorted(present))
        raise errors.UserError(f"config.{key} is a group; set one of its keys: {inside}.")
    with node.ignore_type():  # `_read` checks: None may become anything, an int a float
        node[leaf] = _read(text, present, key)


def expand_paths(config: config_dict.ConfigDict) -> None:
    """Replaces `~` and environment variables in the paths of a config, see `paths.expand`."""

    def expand(node, keys):
        for key in keys:
            if isinstance(node.get(key), str):
                node[key] = paths.expand(node[key])

    expand(config, ("init_from",))
    data = config.get("data")
    if not isinstance(data, config_dict.ConfigDict):
        return  # `checks.check_config` refuses it
    expand(data, PATHS)
    also = data.get("train_also")
    if also and all(isinstance(part, Mapping | config_dict.ConfigDict) for part in also):
        also = [dict(part) for part in also]
        for part in also:
            expand(part, PATHS)
        data.train_also = tuple(also)


def to_json(config: config_dict.ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values (tuples become lists)."""
    return json.loads(config.to_json_best_effort())


def from_json(values: Mapping[str, Any]) -> config_dict.ConfigDict:
    """The inverse of `to_json`: lists become tuples, and keys that older configs lack are added."""
    values = dict(values)
    if "eval" in values:
        values.setdefault("predict", {})
    for block, keys in LATER.items():
        if block in values:
            values[block] = {**keys, **values[block]}
    if "model" in values and "eval" in values:
        values["model"] = dict(values["model"])
        if values["model"].pop("flip_test", False):  # CornerNet's field before `eval.views`
            values["eval"]["views"] = ("image", "mirror")
    return ml_collections.ConfigDict(_tuples(values))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys in which two configs as JSON differ -> both values; "absent" for none."""
    old, new = _flat(old), _flat(new)
    both = {
        key: (old.get(key, "absent"), new.get(key, "absent"))
        for key in sorted(old.keys() | new.keys())
    }
    return {key: (before, after) for key, (before, after) in both.items() if before != after}


def _find(name: str) -> pathlib.Path:
    path = pathlib.Path(name)
    if path.is_file():
        return path
    if path.parent.as_posix() in (".", "experiments"):
        candidate = _experiments_folder() / f"{path.stem}.py"
        if candidate.is_file():
            return candidate
    names = shipped()
    close = difflib.get_close_matches(path.stem, names, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise errors.UserError(
        f"{name} is neither a config file nor a shipped experiment.{hint}"
        f" Shipped experiments: {', '.join(names)}."
    )


def _experiments_folder() -> pathlib.Path:
    return pathlib.Path(experiments.__file__).parent


class _FormerName(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets configs write `from experiments import common` for `detlab.experiments.common`.

    A user's package `experiments` that comes first on the path takes precedence.
    """

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: python_types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "experiments":
            other = importlib.machinery.PathFinder.find_spec(name)
            if other and other.origin and not os.path.samefile(other.origin, experiments.__file__):
                return None
        elif not name.startswith("experiments.") or sys.modules["experiments"] is not experiments:
            return None
        if importlib.util.find_spec(f"detlab.{name}") is None:
            return None
        return importlib.machinery.ModuleSpec(name, self)

    def exec_module(self, module: python_types.ModuleType) -> None:
        name = module.__name__
        sys.modules[name] = importlib.import_module(f"detlab.{name}")


def _import(path: pathlib.Path) -> python_types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"detlab_config_{path.stem}", path)
    if spec is None:
        raise errors.UserError(
            f"config file {path} is not a Python file; name a .py file with get_config()."
        )
    module = importlib.util.module_from_spec(spec)
    if not any(isinstance(finder, _FormerName) for finder in sys.meta_path):
        sys.meta_path.insert(0, _FormerName())
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file may raise anything
        raise errors.UserError(
            f"config file {path} fails on import: {type(error).__name__}: {_one_line(error)}"
        ) from error
    if not hasattr(module, "get_config"):
        raise errors.UserError(f"config file {path} has no function get_config(); define one.")
    return module


def _variants(module: python_types.ModuleType) -> list[str]:
    known = getattr(module, "VARIANTS", ())
    if not isinstance(known, (tuple, list, dict)) or not all(isinstance(x, str) for x in known):
        raise errors.UserError(
            f"config file {module.__file__}: VARIANTS is {known!r}; it must be a tuple of the"
            " strings that get_config accepts."
        )
    return [variant for variant in known if variant]


def _get_config(path: pathlib.Path, variant: str) -> config_dict.ConfigDict:
    module = _import(path)
    takes_variant = bool(inspect.signature(module.get_config).parameters)
    if variant and not takes_variant:
        raise errors.UserError(f"config file {path} has no variants; remove ':{variant}'.")
    known = _variants(module)
    if variant and known and variant not in known:
        close = difflib.get_close_matches(variant, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from: {str(known)[1:-1]}."
        raise errors.UserError(f"config file {path}: variant {variant!r} is unknown; {hint}")
    try:
        config = module.get_config(variant) if takes_variant else module.get_config()
    except ValueError as error:  # how a config rejects a variant
        raise errors.UserError(f"config file {path}: {error}") from error
    except Exception as error:  # a user's function may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        line = [frame.lineno for frame in frames if frame.filename == module.__file__]
        where = f"config file {path}, line {line[-1]}" if line else f"config file {path}"
        key = _unknown_key(error)
        if key:
            hint = checks.suggestion(key)
            raise errors.UserError(f"{where}: unknown key '{key}'.{hint}") from error
        raise errors.UserError(f"{where}: {type(error).__name__}: {_one_line(error)}") from error
    if not isinstance(config, config_dict.ConfigDict):
        raise errors.UserError(
            f"config file {path}: get_config() must return an ml_collections ConfigDict."
        )
    return config


def _unknown_key(error: Exception) -> str | None:
    """The key that a locked ConfigDict lacks; None for other errors."""
    written = re.search(r'Key "(\w+)" does not exist', str(error))
    if written:
        return written[1]
    if isinstance(error, AttributeError) and isinstance(error.obj, config_dict.ConfigDict):
        return error.name  # the key was read, not written
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check_key(node: config_dict.ConfigDict, key: str, whole: str) -> None:
    if key in node:
        return
    close = difflib.get_close_matches(key, list(node), n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"choose from: {', '.join(sorted(node))}."
    raise errors.UserError(f"unknown key config.{whole}: no '{key}', {hint}")


def _read(text: str, present: Any, key: str) -> Any:
    """Parses `text` as a value of the type of `present`."""
    if isinstance(present, str):
        return text
    if isinstance(present, tuple) and (words := _words(text, present)):
        return words
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    if present is None:
        return value
    if isinstance(present, bool):
        fits = isinstance(value, bool)
    elif isinstance(present, float):
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        value = float(value) if fits else value
    elif isinstance(present, int):
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif isinstance(present, tuple):
        value = tuple(value) if isinstance(value, list) else value
        fits = isinstance(value, tuple)
    else:
        fits = True
    if not fits:
        kind = type(present).__name__
        hint = f" {_how_to_write(value, present)}" if isinstance(present, tuple) else ""
        raise errors.UserError(
            f"config.{key} is {kind} ({present!r}), and {text!r} is not one.{hint}"
        )
    return value


def _words(text: str, present: tuple) -> tuple[str, ...]:
    """`cat,kitten` as a tuple of strings if `present` is empty or holds strings; else ()."""
    if not all(isinstance(entry, str) for entry in present) or re.search(r"[()\[\]'\"]", text):
        return ()
    words = tuple(word.strip() for word in text.removesuffix(",").split(","))
    numbers = not present and all(re.fullmatch(r"[-+.\d]+(e[-+]?\d+)?", word) for word in words)
    return () if numbers or not all(words) else words


def _how_to_write(value: Any, present: tuple) -> str:
    """A sentence that says how to write a tuple: the entry with a comma, or an example."""
    several = isinstance(value, str) and (value == "" or any(c in value for c in "()[],"))
    if not several and isinstance(value, type(present[0]) if present else (str, int, float)):
        return f"Write {(value,)!r}."
    if all(isinstance(entry, str) for entry in present):
        return f"It is written like {','.join(present or ('a', 'b'))}."
    return f"It is written like {present!r}."


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _tuples(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_tuples(v) for v in value)
    return value
