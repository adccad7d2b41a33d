"""The machine: where caches lie, what must be set before JAX starts, what a run ran on."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import warnings
from pathlib import Path

from cxrjax.errors import UserError

# XLA:CPU hands convolutions to YNNPACK, which is half as fast as Eigen in jaxlib 0.10.2 and slow at
# the gradients of kernels in all of these. From 0.11 on oneDNN is there, faster than either.
# An unknown flag aborts the process, so each is set only for releases known to have it.
_EIGEN_CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
_ONEDNN_CONVOLUTIONS = "--xla_cpu_experimental_onednn_custom_call=true"
_RELEASES_WITH_FLAG = {
    "0.10.2": (_EIGEN_CONVOLUTIONS,),
    **dict.fromkeys(
        ("0.11.0", "0.11.1", "0.11.2", "0.12.0", "0.12.0.1"),
        (_EIGEN_CONVOLUTIONS, _ONEDNN_CONVOLUTIONS),
    ),
}
# Of glibc's mallopt(3): blocks of any size come from one heap, which is never trimmed.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def cache_root(config_cache: str) -> Path:
    """Where stores, downloaded weights and compiled programs are kept.

    Args:
      config_cache: `config.data.cache`; empty means $CXRJAX_CACHE, else ~/.cache/cxrjax.
    """
    named = config_cache or os.environ.get("CXRJAX_CACHE", "") or "~/.cache/cxrjax"
    return Path(os.path.expanduser(named))


def set_xla_flags() -> None:
    """Adds the flags of fast convolutions to XLA_FLAGS, keeping the user's own."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    if any(not flag.startswith("-") for flag in flags):
        return  # the name of a file of flags
    asked = {flag.partition("=")[0] for flag in flags}
    added = [flag for flag in _known_flags() if flag.partition("=")[0] not in asked]
    if platform.machine().lower() not in ("x86_64", "amd64"):
        added = [flag for flag in added if flag != _ONEDNN_CONVOLUTIONS]  # not built in there
    if added:
        os.environ["XLA_FLAGS"] = " ".join(flags + added)


def has_onednn() -> bool:
    """Whether this process asked XLA:CPU for oneDNN's convolutions, in a release that has them."""
    name = _ONEDNN_CONVOLUTIONS.partition("=")[0]
    flags = (flag.partition("=") for flag in os.environ.get("XLA_FLAGS", "").split())
    asked = [value.lower() for flag, _, value in flags if flag == name]
    return _ONEDNN_CONVOLUTIONS in _known_flags() and asked[-1:] in (["true"], ["1"])


def _known_flags() -> tuple[str, ...]:
    return _RELEASES_WITH_FLAG.get(importlib.metadata.version("jaxlib"), ())


def keep_freed_memory() -> None:
    """Has the C library keep freed memory instead of giving every large array back to the system.

    XLA:CPU allocates the buffers of a step anew each time. By default glibc maps and unmaps them,
    and the page faults cost more than the arithmetic of an element-wise operation: multiplying 51
    MB by two takes 9 ms instead of 47, and a DenseNet121 training step half the time. The process
    stays as large as it was at its largest. To be called before JAX makes its threads: one that
    has had memory from a heap of its own, of at most 64 MiB, stays with that heap, and larger
    blocks are mapped all the same.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # not Linux, or another C library
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1)):
        mallopt(option, value)


def _only_cpu() -> bool:
    """Whether JAX can find nothing but CPUs: asked for, or no plugin of another device is there."""
    if asked := os.environ.get("JAX_PLATFORMS"):
        return asked == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None


def start(cache: Path | None = None) -> None:
    """Prepares this process for JAX; call it before the first array is made.

    Args:
      cache: folder in which compiled programs are kept between runs; None keeps none. A
        JAX_COMPILATION_CACHE_DIR of the user's goes before it. Programs with convolutions of
        oneDNN's are never kept.
    Raises:
      UserError: when there is no device of the user's JAX_PLATFORMS.
    """
    set_xla_flags()
    # Only there: with one heap the threads that compile for a GPU wait for each other, minutes
    # becoming many.
    if _only_cpu():
        keep_freed_memory()
    import jax

    jax.config.update("jax_numpy_rank_promotion", "raise")
    # A step dispatched while another runs has its buffers already: twice the memory, for nothing
    # where the steps share the cores.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if cache is not None and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache))
    if has_onednn():
        # XLA has no way to store oneDNN's calls: such programs are compiled at every start, which
        # is nothing that a user could mend.
        unkept = "Error writing persistent compilation cache entry.*bad_alloc"
        warnings.filterwarnings("ignore", unkept, UserWarning)
    if asked := os.environ.get("JAX_PLATFORMS"):
        try:
            jax.devices()
        except (RuntimeError, AssertionError) as error:  # the latter of cuda without a GPU
            raise UserError(
                f"JAX finds no device for JAX_PLATFORMS={asked}; set it to cpu, or unset it to "
                "have JAX choose."
            ) from error


def out_of_memory(error: Exception) -> bool:
    """Whether a jax.errors.JaxRuntimeError says that the device has too little memory."""
    return "RESOURCE_EXHAUSTED" in str(error)


def steps_per_dispatch() -> int:
    """How many training steps one compiled program takes, at most.

    On an accelerator an epoch is one `lax.scan`; loops around convolutions are 6 to 30 times slower
    than without on a CPU. The bound keeps the wait after Ctrl-C and the plan's arrays short.
    """
    import jax

    return 1 if jax.default_backend() == "cpu" else 512


def describe() -> dict[str, object]:
    """Device, versions and thread count, for result files."""
    import jax

    device = jax.devices()[0]
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "cxrjax")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "device": f"{device.device_kind} ({device.platform}), {os.cpu_count()} CPU cores",
        "versions": versions,
    }
