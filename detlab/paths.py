"""Paths as users write them, with `~` and environment variables."""

import os
import pathlib
import re

from detlab import errors


def expand(text: str) -> str:
    """A path with `~` and environment variables replaced, as a shell would.

    A shell replaces `~` only at the start of a word, so not in `--workdir=~/run`.  URLs stay as
    they are, and so do paths with `$` or `~name` that exist under just that name.

    Raises:
      UserError: a variable is not set, or there is no such user.
    """
    home = re.match(r"~[^/]*", text)
    if "://" in text or not (home or "$" in text):
        return text
    if os.path.lexists(text) and (not home or home[0] != "~"):
        return text
    path = os.path.expanduser(text)
    if home and path == text:
        whose = f"there is no user {home[0][1:]}" if home[0] != "~" else "HOME is not set"
        raise errors.UserError(
            f"the path {text} begins with {home[0]}, but {whose}; write the path out, or ./{text}"
            " for a file or folder of that name."
        )
    for name in re.findall(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))", path):
        if "".join(name) not in os.environ:
            raise errors.UserError(
                f"the path {text} has the environment variable {''.join(name)}, which is not set;"
                " set it, or write the path out."
            )
    return os.path.expandvars(path)


def path(text: str) -> pathlib.Path:
    """`expand`, as a path; for flags whose value is one."""
    return pathlib.Path(expand(text))
