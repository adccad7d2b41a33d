"""What is set before JAX starts."""

import os
import subprocess
import sys

import pytest

from cxrjax import runtime

LARGE = """
import resource
from cxrjax import runtime
runtime.start()
import jax, jax.numpy as jnp
twice = jax.jit(lambda x: 2 * x)
x = jnp.ones((32, 1024, 1024))  # 128 MiB, more than a heap of a thread of its own can hold
for _ in range(15):  # the heap grows until what is freed on another thread is enough
    twice(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    twice(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_large_arrays_come_from_memory_freed_before():
    run = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 1000  # 5 x 32768 pages of 4 KiB when each array is mapped anew


@pytest.mark.parametrize(
    ("asked", "plugins", "alone"),
    [("", [], True), ("", ["cuda"], False), ("cpu", ["cuda"], True), ("cuda,cpu", [], False)],
)
def test_memory_is_kept_only_where_there_is_nothing_but_cpus(monkeypatch, asked, plugins, alone):
    monkeypatch.setenv("JAX_PLATFORMS", asked)
    monkeypatch.setattr(runtime.importlib.metadata, "entry_points", lambda group: plugins)
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("jax.devices", list)  # JAX would read the made-up plugins
    called = []
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda: called.append(True))
    runtime.start()
    assert bool(called) == alone


@pytest.mark.parametrize("asked", ["nonsense", "tpu,cpu", "cuda"])
def test_a_platform_without_a_device_is_one_sentence(tmp_path, asked):
    run = subprocess.run(
        [sys.executable, "-m", "cxrjax.convert", tmp_path / "none.h5", tmp_path / "w.npz"],
        env=os.environ | {"JAX_PLATFORMS": asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    here = f"JAX finds no device for JAX_PLATFORMS={asked};" in run.stderr
    # Where there is one, the missing file is told.
    assert run.stderr.count("cxrjax: ") == 1 and (here or "none.h5 cannot be read" in run.stderr)
    assert here or asked != "nonsense"


@pytest.mark.parametrize(
    ("release", "asked", "flags"),
    [
        ("0.10.2", "", [runtime._EIGEN_CONVOLUTIONS]),
        ("0.12.0", "", [runtime._EIGEN_CONVOLUTIONS, runtime._ONEDNN_CONVOLUTIONS]),
        ("0.12.0", "--mine=1", ["--mine=1", *runtime._RELEASES_WITH_FLAG["0.12.0"]]),
        (
            "0.12.0",
            "--xla_cpu_experimental_onednn_custom_call=false",
            ["--xla_cpu_experimental_onednn_custom_call=false", runtime._EIGEN_CONVOLUTIONS],
        ),
        ("99.0", "--mine=1", ["--mine=1"]),
        ("0.12.0", "file_of_flags", ["file_of_flags"]),
    ],
)
def test_flags_are_added_where_the_release_knows_them_and_the_user_set_none(
    monkeypatch, release, asked, flags
):
    monkeypatch.setenv("XLA_FLAGS", asked)
    monkeypatch.setattr(runtime.importlib.metadata, "version", lambda name: release)
    monkeypatch.setattr(runtime.platform, "machine", lambda: "x86_64")
    runtime.set_xla_flags()
    assert runtime.os.environ["XLA_FLAGS"].split() == flags
    assert runtime.has_onednn() == (runtime._ONEDNN_CONVOLUTIONS in flags)


@pytest.mark.parametrize(
    ("release", "flags", "has"),
    [
        ("0.12.0", "=true", True),
        ("0.12.0", "=1", True),
        ("0.12.0", "=true --xla_cpu_experimental_onednn_custom_call=false", False),
        ("0.10.2", "=true", False),  # it knows the flag and does nothing
    ],
)
def test_the_last_flag_of_a_release_with_onednn_counts(monkeypatch, release, flags, has):
    monkeypatch.setenv("XLA_FLAGS", f"--xla_cpu_experimental_onednn_custom_call{flags}")
    monkeypatch.setattr(runtime.importlib.metadata, "version", lambda name: release)
    assert runtime.has_onednn() == has


CONVOLUTION = """
import sys
from pathlib import Path
from cxrjax import runtime
runtime.start(Path(sys.argv[1]))
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
images, kernel = jnp.ones((4, 32, 32, 16)), jnp.ones((3, 3, 16, 32))
jax.jit(lambda x, k: jax.lax.conv_general_dilated(
    x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))(images, kernel)
jax.jit(lambda x: x @ x)(jnp.ones((64, 64)))
"""


def test_programs_that_cannot_be_kept_are_no_matter_for_the_user(tmp_path):
    command = [sys.executable, "-c", CONVOLUTION, str(tmp_path)]
    named = dict(os.environ, JAX_COMPILATION_CACHE_DIR="")
    run = subprocess.run(command, env=named, capture_output=True, text=True, check=True)
    assert run.stderr == ""
    assert list(tmp_path.iterdir())  # the product of matrices, whatever became of the other


def test_onednn_is_not_asked_for_where_it_is_not_built_in(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(runtime.importlib.metadata, "version", lambda name: "0.12.0")
    monkeypatch.setattr(runtime.platform, "machine", lambda: "arm64")
    runtime.set_xla_flags()
    assert runtime.os.environ["XLA_FLAGS"] == runtime._EIGEN_CONVOLUTIONS
