"""What every test runs under: strict rank promotion, no network, a cache folder of its own."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Runs find the programs of those before them, in every file and process, as those of a user do.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="cxrjax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

from cxrjax import runtime

runtime.start()

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True, scope="session")
def _no_network():
    """Only this machine can be reached; C++ code that opens sockets itself is not held back."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def is_near(host):
        return host in (None, "localhost", "::1") or str(host).startswith("127.")

    def connect_near(self, address):
        assert self.family == socket.AF_UNIX or is_near(address[0]), f"asked for {address}"
        return connect(self, address)

    def look_up_near(host, *arguments, **options):
        assert is_near(host), f"the network was asked for {host}"
        return look_up(host, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_near)
        patch.setattr(socket, "getaddrinfo", look_up_near)
        yield


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Stores and weights of a test, and of what modules share, never mix with the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXRJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.delenv("CXRJAX_DATA", raising=False)
        patch.delenv("CXRJAX_WEIGHTS", raising=False)
        yield


@pytest.fixture
def drawn(monkeypatch):
    """The figures as objects, kept when they are saved."""
    from matplotlib.figure import Figure

    kept = []
    savefig = Figure.savefig

    def keep(self, *args, **settings):
        kept.append(self)
        return savefig(self, *args, **settings)

    monkeypatch.setattr(Figure, "savefig", keep)
    return kept


@pytest.fixture
def shared():
    """Folder with the real X-rays and weights, where this checkout has one beside it."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"{name} is not beside this checkout")
        return path

    return find
