"""Downloads: once, resumed, checked, never half there, never when offline."""

import hashlib
import http.server
import multiprocessing
import re
import threading
from dataclasses import replace

import h5py
import numpy as np
import pytest

from cxrjax.errors import UserError
from cxrjax.models import download, registry, weights

DENSENET = registry.spec("densenet121")
CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.content`; what a path contains says how well."""

    def do_GET(self):
        content, start = self.server.content, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        self.server.requests.append((self.path, asked and int(asked[1])))
        if asked and "plain" not in self.path:
            start = int(asked[1])
        if "gone" in self.path or start >= len(content):
            self.send_error(404 if "gone" in self.path else 416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if "silent" not in self.path:
            size = 1 << 40 if "huge" in self.path else len(content) - start
            self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(content[start : start + self.server.at_most])

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.requests, server.at_most = CONTENT, [], None
    server.at_most = len(CONTENT)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def spec(server, name="w.h5", **changes):
    md5 = hashlib.md5(server.content).hexdigest()
    return replace(
        DENSENET, **{"weights_url": f"{server.url}/{name}", "weights_md5": md5} | changes
    )


def test_download_once_checked_and_kept(server, tmp_path):
    path = weights.find(spec(server), "imagenet", tmp_path / "cache")
    assert path == tmp_path / "cache" / "w.h5"
    assert path.read_bytes() == CONTENT
    assert weights.find(spec(server), "imagenet", tmp_path / "cache") == path
    assert server.requests == [("/w.h5", None)]
    assert [file.name for file in path.parent.iterdir()] == ["w.h5"]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("w.h5", {"weights_md5": "0" * 32}, "its MD5 is not 000"),
        ("w.h5", {"weights_md5": "0" * 64}, "its SHA256 is not 000"),
        ("gone.h5", {}, "configs/quickstart.py"),
        ("w.h5", {"weights_url": "http://127.0.0.1:9/w.h5"}, "CXRJAX_WEIGHTS"),
        ("huge.h5", {}, "larger than weights are"),
        ("w.h5", {"weights_md5": None}, "damaged, cut short or not a Keras weight file"),
    ],
)
def test_failed_download_says_what_to_do_and_leaves_nothing(server, tmp_path, name, changes, words):
    with pytest.raises(UserError, match=words) as caught:
        weights.find(spec(server, name, **changes), "imagenet", tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").iterdir())


def test_sha256_serves_as_well(server, tmp_path):
    digest = hashlib.sha256(CONTENT).hexdigest()
    path = weights.find(spec(server, weights_md5=digest), "imagenet", tmp_path)
    assert path is not None and path.read_bytes() == CONTENT


def test_an_interrupted_download_goes_on_where_it_stopped(server, tmp_path):
    server.at_most = 1_000_000
    with pytest.raises(UserError, match=r"cut off after 1,000,000 of 3,000,000 bytes"):
        weights.find(spec(server), "imagenet", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["w.h5.part"]
    with pytest.raises(UserError, match=r"cut off after 2,000,000 of 3,000,000 bytes"):
        weights.find(spec(server), "imagenet", tmp_path)
    path = weights.find(spec(server), "imagenet", tmp_path)
    assert path is not None and path.read_bytes() == CONTENT
    assert server.requests == [("/w.h5", None), ("/w.h5", 1_000_000), ("/w.h5", 2_000_000)]
    assert [file.name for file in tmp_path.iterdir()] == ["w.h5"]


@pytest.mark.parametrize("name", ["plain.h5", "w.h5", "silent.h5"])
@pytest.mark.parametrize("size", [1, 1_000_000, 3_000_000, 4_000_000])
def test_a_wrong_first_part_is_fetched_anew(server, tmp_path, name, size):
    """Also where the server knows no ranges, or has nothing after the part."""
    (tmp_path / f"{name}.part").write_bytes(bytes(size))
    path = weights.find(spec(server, name), "imagenet", tmp_path)
    assert path is not None and path.read_bytes() == CONTENT


def test_a_server_that_sends_all_again_is_taken_at_its_word(server, tmp_path):
    (tmp_path / "plain.h5.part").write_bytes(CONTENT[:1000])
    path = weights.find(spec(server, "plain.h5"), "imagenet", tmp_path)
    assert path is not None and path.read_bytes() == CONTENT
    assert server.requests == [("/plain.h5", 1000)]


def test_a_part_that_is_whole_needs_no_data(server, tmp_path):
    (tmp_path / "w.h5.part").write_bytes(CONTENT)
    path = weights.find(spec(server), "imagenet", tmp_path)
    assert path is not None and path.read_bytes() == CONTENT
    assert server.requests == [("/w.h5", len(CONTENT))]


def test_without_a_published_digest_the_file_is_read_and_nothing_resumed(server, tmp_path, capsys):
    with h5py.File(tmp_path / "made.h5", "w") as file:
        file.attrs["layer_names"] = [b"conv1"]
        file.create_group("conv1").attrs["weight_names"] = [b"kernel:0"]
        file["conv1"]["kernel:0"] = np.ones(1000, np.float32)
    server.content = (tmp_path / "made.h5").read_bytes()
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "w.h5.part").write_bytes(server.content[:10])
    server.at_most = 2000
    with pytest.raises(UserError, match="cut off"):
        weights.find(spec(server, weights_md5=None), "imagenet", cache)
    assert not list(cache.iterdir())
    server.at_most = len(server.content)
    path = weights.find(spec(server, weights_md5=None), "imagenet", cache)
    assert path is not None and path.read_bytes() == server.content
    assert server.requests == [("/w.h5", None)] * 2
    assert "only that it can be read was checked" in capsys.readouterr().err


def test_offline_opens_no_connection_and_says_what_to_put_where(server, tmp_path, monkeypatch):
    monkeypatch.setenv("CXRJAX_OFFLINE", "1")
    with pytest.raises(UserError, match=r"CXRJAX_OFFLINE is set and w\.h5 is not here") as caught:
        weights.find(spec(server), "imagenet", tmp_path / "cache")
    for part in (f"{server.url}/w.h5", str(tmp_path / "cache"), "CXRJAX_WEIGHTS"):
        assert part in str(caught.value)
    assert not server.requests and not (tmp_path / "cache").exists()
    (tmp_path / "w.h5").write_bytes(b"x")
    assert weights.find(spec(server), "imagenet", tmp_path) == tmp_path / "w.h5"
    monkeypatch.setenv("CXRJAX_OFFLINE", "0")
    weights.find(spec(server), "imagenet", tmp_path / "cache")


def _fetch(url, target, published, results):
    download.fetch(url, target, published=published, check=lambda path: None)
    results.put(hashlib.md5(target.read_bytes()).hexdigest())


def test_processes_that_start_together_fetch_once(server, tmp_path):
    context = multiprocessing.get_context("fork")
    results, md5 = context.Queue(), hashlib.md5(CONTENT).hexdigest()
    arguments = (f"{server.url}/w.h5", tmp_path / "w.h5", md5, results)
    processes = [context.Process(target=_fetch, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [md5] * 4
    for process in processes:
        process.join()
    assert server.requests == [("/w.h5", None)]
    assert [file.name for file in tmp_path.iterdir()] == ["w.h5"]


def test_an_unwritable_cache_is_told(server, tmp_path):
    (tmp_path / "cache").write_bytes(b"a file")
    with pytest.raises(UserError, match="set CXRJAX_CACHE to another folder"):
        weights.find(spec(server), "imagenet", tmp_path / "cache")
