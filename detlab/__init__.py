"""detlab: object detectors in JAX and Flax that can be read from top to bottom."""

import importlib
import pathlib

__version__ = "0.1.0"

# `detlab.converters` and `detlab.experiments` are beside this folder in a checkout and inside it
# once installed (setup.cfg).  In a checkout, they are found on the path added here, so a checkout
# never mixes with an installed detlab.
if not (pathlib.Path(__file__).parent / "experiments").is_dir():
    __path__.append(str(pathlib.Path(__file__).resolve().parents[1]))

# What `detlab.NAME` is; imported when it is used, so that `import detlab` takes no time.
_LAZY = {
    "load": "detlab.api",
    "build": "detlab.api",
    "read_config": "detlab.api",
    "Predictor": "detlab.predictor",
    "Result": "detlab.results",
    "UserError": "detlab.errors",
}
_MODULES = ("ops", "losses", "assign")


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"detlab.{name}")
    raise AttributeError(f"module 'detlab' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_LAZY, *_MODULES])
