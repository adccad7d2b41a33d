"""What every test runs under: strict rank promotion, no network, a cache folder of its own."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from cxrjax import runtime

runtime.start()

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Stores and weights of a test never mix with the user's."""
    monkeypatch.setenv("CXRJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("CXRJAX_DATA", raising=False)
    monkeypatch.delenv("CXRJAX_WEIGHTS", raising=False)


@pytest.fixture
def shared():
    """Folder with the real X-rays and weights, where this checkout has one beside it."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"{name} is not beside this checkout")
        return path

    return find
