"""Where a run or a bug happened: versions, devices, variables, caches, and the config's hash.

Plain JSON values without the names of user and host, so it can be published.
"""

import collections
import difflib
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
from detlab import errors, paths

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
    named = jax.config.jax_compilation_cache_dir
    if named:
        jax.config.update("jax_compilation_cache_dir", paths.expand(named))
    if named or (config and not config.compilation_cache):
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_folder("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def cache_folder(name: str) -> pathlib.Path:
    """A folder in the user's cache: `xla` has compiled programs, `downloads` files from URLs."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base).expanduser() / "detlab" / name


def check_devices() -> None:
    """Starts the devices, so that a missing one is known first; call `distributed.join` before it.

    Raises:
      UserError: JAX_PLATFORMS names a platform that is unknown or has no device here, or jax can
        start no device.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the second: no GPU is visible
        raise errors.UserError(_missing_device(error)) from error


# What JAX_PLATFORMS may hold, and the devices it stands for.
_PLATFORMS = {
    "cpu": "CPU",
    "gpu": "GPU",
    "cuda": "NVIDIA GPU",
    "rocm": "AMD GPU",
    "tpu": "TPU",
    "oneapi": "Intel GPU",
    "metal": "Apple GPU",
}


def _missing_device(error: BaseException) -> str:
    """Why no device of the wanted platform was started, and what to do; see `check_devices`."""
    wanted, variable = jax.config.jax_platforms, "JAX_PLATFORMS"
    if not wanted:
        wanted, variable = os.environ.get("JAX_PLATFORM_NAME"), "JAX_PLATFORM_NAME"
    cause = errors.first_line(error).partition(" (set JAX_PLATFORMS")[0]
    if not wanted:
        return f"jax can start no device ({cause}); JAX_PLATFORMS=cpu computes on the CPU."
    names = wanted.split(",")
    unknown = [name for name in names if name.lower() not in _PLATFORMS]
    if unknown and ("known backends" in cause or "Unknown backend" in cause):
        known = ", ".join(_PLATFORMS)
        close = difflib.get_close_matches(unknown[0].strip().lower(), _PLATFORMS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else "the CPU is cpu."
        return (
            f"{variable} is {wanted!r}, and jax knows no platform {unknown[0]!r} here; it may be"
            f" unset, or one of {known}: {hint}"
        )
    miscased = [name for name in names if name not in _PLATFORMS]
    if miscased:
        return f"{variable} is {wanted!r}; platforms are written small: {wanted.lower()}."
    kind = _PLATFORMS[next((name for name in names if f"'{name}'" in cause), names[0])]
    # jax passes over cuda where no GPU is visible, then fails at the next platform or at none.
    other = "known backends" in cause and "'cuda'" not in cause.partition("known backends")[0]
    if isinstance(error, AssertionError) or ("gpu" in names and other):
        cause = "no NVIDIA GPU is visible to this process"
        if "CUDA_VISIBLE_DEVICES" in os.environ:
            cause += f"; CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r}"
    elif "known backends" in cause:
        cause = "jax's plugin for it is not installed"
    return (
        f"{variable} is {wanted!r}, but jax finds no {kind} here ({cause}); start on a machine that"
        f" has one and with jax's plugin for it, or compute on the CPU with {variable}=cpu."
    )


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
    # Devices that do not start are often the bug to report.
    except (RuntimeError, AssertionError) as error:
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
