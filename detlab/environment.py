"""Where a run or a bug happened: versions, devices, variables, caches, and the config's hash.

Plain JSON values without the names of user and host, so it can be published.
"""

import collections
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import config_dict

import detlab
from detlab import config as config_lib
from detlab import errors

# What detlab requires (`install_requires` of setup.cfg), plus jaxlib.
PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets"),
    *("importlib_resources", "numpy", "safetensors", "pycocotools", "ml_collections", "absl-py"),
    *("grain", "opencv-python-headless", "tensorboardX", "matplotlib", "pillow", "tqdm"),
)
_VARIABLES = re.compile(r"XLA_FLAGS|LIBTPU_INIT_ARGS|CUDA_VISIBLE_DEVICES|JAX_\w+|XLA_PYTHON_\w+")


def describe(config: config_dict.ConfigDict | None = None) -> dict[str, Any]:
    """Describes the environment; unknown values are None.

    This starts the devices, so call `distributed.join` first.  The compilation cache is the one in
    effect, see `use_compilation_cache`.
    """
    return {
        "detlab": detlab.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        **_devices(),
        "packages": {name: _version(name) for name in PACKAGES},
        "variables": {
            name: "set" if "ADDRESS" in name else anonymous(value)  # an address names a host
            for name, value in sorted(os.environ.items())
            if _VARIABLES.fullmatch(name)
        },
        "compilation_cache": _folder(jax.config.jax_compilation_cache_dir),
        "download_cache": _folder(cache_folder("downloads")),
        "config_hash": None if config is None else config_hash(config),
    }


def use_compilation_cache(config: config_dict.ConfigDict | None = None) -> None:
    """Caches compiled programs in the user's cache folder, which makes later starts quick.

    `config.compilation_cache` may switch this off.  A folder in JAX_COMPILATION_CACHE_DIR is always
    used.
    """
    if (config and not config.compilation_cache) or jax.config.jax_compilation_cache_dir:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_folder("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def cache_folder(name: str) -> pathlib.Path:
    """A folder in the user's cache: `xla` has compiled programs, `downloads` files from URLs."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "detlab" / name


def text(found: Mapping[str, Any]) -> str:
    """The result of `describe` as text, one line per value."""
    lines = []
    for key, value in found.items():
        if isinstance(value, Mapping):
            lines.append(f"{key}:" if value else f"{key + ':':19}none")
            lines += [f"  {k:32} {_shown(v)}" for k, v in value.items()]
        else:
            lines.append(f"{key + ':':19}{_shown(value)}")
    return "\n".join(lines)


def config_hash(config: config_dict.ConfigDict) -> str:
    """16 hexadecimal digits that are the same for configs with equal values."""
    values = json.dumps(config_lib.to_json(config), sort_keys=True)
    return hashlib.sha256(values.encode()).hexdigest()[:16]


def processor() -> str:
    """The model of the processor."""
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def devices() -> str:
    """Number and kind of the devices of all processes, such as `8 x NVIDIA H200`."""
    counts = collections.Counter(device.device_kind for device in jax.devices())
    return ", ".join(f"{count} x {kind}" for kind, count in counts.items())


def anonymous(value: str) -> str:
    """Replaces the home folder and the names of user and host in a text."""
    home = pathlib.Path.home()
    for path in {str(home), str(home.resolve())} - {"/"}:
        value = re.sub(rf"{re.escape(path)}(?![\w.-])", "~", value)
    users = {home.name, os.environ.get("USER"), os.environ.get("LOGNAME")}
    for user in users - {"", None}:  # only as a folder's name: a user may be called "cpu"
        value = re.sub(rf"(?<=/){re.escape(user)}(?=/|$)", "USER", value)
    if platform.node():
        value = re.sub(rf"(?<![\w-]){re.escape(platform.node())}(?![\w-])", "HOST", value)
    return value


def _commit() -> str | None:
    """The commit of a checkout, with `-dirty` appended if files differ; None outside of one."""
    root = pathlib.Path(detlab.__file__).resolve().parents[1]
    if not (root / ".git").exists():  # an installed detlab may lie in some other repository
        return None
    words = "git --no-optional-locks describe --always --dirty --abbrev=40 --exclude=*".split()
    try:
        done = subprocess.run(
            words, cwd=root, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):  # no git, or the repository has another owner
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    try:
        return {
            "backend": jax.default_backend(),
            "driver": " ".join(jax.devices()[0].client.platform_version.split()),
            "devices": devices(),
            "processes": jax.process_count(),
        }
    except RuntimeError as error:  # devices that do not start are often the bug to report
        return {"backend": None, "devices": anonymous(errors.first_line(error))}


def _folder(folder: str | pathlib.Path | None) -> dict[str, Any] | None:
    """Number and size of a folder's files, 0 if it does not exist; None without a name."""
    if not folder:
        return None
    sizes = []
    for path in pathlib.Path(folder).rglob("*"):
        try:
            if path.is_file():
                sizes.append(path.stat().st_size)
        except OSError:  # another process has just removed the file
            continue
    return {
        "folder": anonymous(str(folder)),
        "files": len(sizes),
        "megabytes": round(sum(sizes) / 1e6, 1),
    }


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
