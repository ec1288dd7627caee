"""detlab: object detectors in JAX and Flax that can be read from top to bottom."""

import pathlib

__version__ = "0.1.0"

# `detlab.converters` and `detlab.experiments` are beside this folder in a checkout and inside it
# once installed (setup.cfg).  In a checkout, they are found on the path added here, so a checkout
# never mixes with an installed detlab.
if not (pathlib.Path(__file__).parent / "experiments").is_dir():
    __path__.append(str(pathlib.Path(__file__).resolve().parents[1]))
