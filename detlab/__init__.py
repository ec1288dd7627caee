"""detlab: object detectors in JAX and Flax that can be read from top to bottom."""

import pathlib

__version__ = "0.1.0"

# `detlab.converters` and `detlab.experiments` lie beside this folder in a checkout, and in it once
# installed (setup.cfg).  So a checkout that is on the path is used whole, whatever is installed.
if not (pathlib.Path(__file__).parent / "experiments").is_dir():
    __path__.append(str(pathlib.Path(__file__).resolve().parents[1]))
