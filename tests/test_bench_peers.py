"""The benchmark against its peers: turns taken, equal networks."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from test_bench import QUICKSTART, tiny
from test_loop import ROOT

from cxrjax import config, optim
from cxrjax.bench import job as jobs
from cxrjax.bench import session
from cxrjax.bench.processes import Measured, ProcessFailed
from cxrjax.bench.summary import ratios, spread
from cxrjax.errors import UserError
from cxrjax.models import classifier, registry

PEERS = ROOT / "experiments" / "peers"


# ------------------------------------------------------------------ taking turns

FAKE = """
import sys, time
sys.path.insert(0, {root!r})
from cxrjax.bench.serve import Prepared, serve

class Told(Exception):
    pass

def prepare(job):
    print("libraries print what they like")
    name, mistake = {name!r}, {mistake!r}
    if mistake == "told":
        raise Told("mend this.")
    if mistake == "crash":
        raise ValueError("two\\nlines")
    if mistake == "exit":
        sys.stderr.write("last words")
        sys.stderr.flush()
        __import__("os")._exit(3)
    if mistake == "killed":
        __import__("os").kill(__import__("os").getpid(), 9)
    if mistake == "silent":
        time.sleep(60)

    def window():
        if mistake == "window":
            raise RuntimeError("in a window")
        with open({journal!r}, "a") as file:
            file.write(name + " ")
        return {seconds}, 12

    return Prepared({{"row": job["row"], "parameter_layers": 1}}, window,
                    lambda: {{"peak_memory": {{"bytes": 1, "of": "fake"}}}})

sys.exit(serve(prepare, Told))
"""


@pytest.fixture
def fake(tmp_path):
    """Writes a process that speaks the protocol and notes its windows in tmp_path/journal."""

    def write(name, seconds=1.0, mistake=None):
        path, journal = tmp_path / f"{name}.py", str(tmp_path / "journal")
        details = dict(name=name, seconds=seconds, mistake=mistake, journal=journal)
        path.write_text(FAKE.format(root=str(ROOT), **details))
        return path

    return write


def started(path, seconds=60.0):
    return Measured(path.stem, [sys.executable, str(path)], {"row": "x"}, {}, seconds=seconds)


@pytest.fixture
def against_fakes(fake, monkeypatch):
    """`measure_row` with our process, and every peer's, replaced by fakes."""

    def measure(peers, settings, **mistakes):
        seconds = {"ours": 2.0, "torch": 3.0, "keras-jax": 1.0}
        paths = {name: fake(name, seconds[name], mistakes.get(name)) for name in seconds}
        monkeypatch.setattr(session, "_ours", lambda *a, **k: started(paths["ours"]))
        monkeypatch.setattr(session, "peer_script", paths.get)
        peak = {"flop_per_second": 1e9}
        return session.measure_row(tiny(), "synthetic", peers, settings, peak)

    return measure


def test_windows_alternate_and_their_ratio_is_theirs_over_ours(against_fakes, tmp_path):
    row = against_fakes(("torch", "keras-jax"), session.Settings(windows=3))
    journal = (tmp_path / "journal").read_text().split()
    assert journal == ["ours", "torch"] * 3 + ["ours", "keras-jax"] * 3
    assert row["images_per_second"]["median"] == 6 and len(row["images_per_second"]["windows"]) == 6
    torch, keras = row["peers"]["torch"], row["peers"]["keras-jax"]
    assert torch["ratio"] == {"median": 1.5, "min": 1.5, "max": 1.5}
    assert keras["ratio"]["median"] == 0.5 and keras["images_per_second"]["median"] == 12
    assert torch["peak_memory"] == {"bytes": 1, "of": "fake"}


def test_epochs_alternate_with_the_rows_they_are_told_in_terms_of(fake, monkeypatch, tmp_path):
    paths = {"end_to_end": fake("end_to_end", 2.0), "synthetic": fake("synthetic", 4.0)}
    monkeypatch.setattr(session, "_ours", lambda config, row, *a, **k: started(paths[row]))
    settings, peak = session.Settings(windows=3), {"flop_per_second": 1e9}
    row = session.measure_row(tiny(), "end_to_end", (), settings, peak, ("synthetic",))
    journal = (tmp_path / "journal").read_text().split()
    assert journal == ["end_to_end", "synthetic"] * 3
    assert row["over"] == {"synthetic": {"median": 2.0, "min": 2.0, "max": 2.0}}
    assert row["images_per_second"]["windows"] == [6.0] * 3


def test_nothing_is_augmented_beside_peers(fake, monkeypatch):
    seen = []
    path = fake("ours")
    monkeypatch.setattr(session, "_ours", lambda c, *a, **k: seen.append(c) or started(path))
    monkeypatch.setattr(session, "peer_script", lambda name: fake(name))
    settings = tiny(augment__border=0.2, augment__gamma=0.5)
    peak = {"flop_per_second": 1e9}
    session.measure_row(settings, "synthetic", ("torch",), session.Settings(windows=1), peak)
    assert set(seen[0].augment.values()) == {0.0} and settings.augment.border == 0.2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schedule", "cosine"),
        ("warmup", 1.0),
        ("backbone_rate", 0.5),
        ("label_smoothing", 0.1),
        ("ema", 0.9),
    ],
)
def test_an_option_that_peers_lack_is_refused_beside_them(field, value):
    settings = tiny(**{f"train__{field}": value})
    session.check(settings, ("synthetic",))
    with pytest.raises(UserError, match=rf"train\.{field} is {value}.*leave it at"):
        session.check(settings, ("synthetic",), ("torch",))


@pytest.mark.parametrize("mistake", ["crash", "window"])
def test_a_peer_that_breaks_down_is_raised_or_noted(against_fakes, mistake):
    with pytest.raises(ProcessFailed, match="torch: "):
        against_fakes(("torch",), session.Settings(windows=2), torch=mistake)
    going_on = session.Settings(windows=2, go_on=True)
    row = against_fakes(("torch", "keras-jax"), going_on, torch=mistake)
    assert "torch: " in row["peers"]["torch"]["error"]
    assert row["peers"]["keras-jax"]["ratio"]["median"] == 0.5
    alone = against_fakes(("torch",), going_on, torch=mistake)
    assert len(alone["images_per_second"]["windows"]) == 2
    with pytest.raises(ProcessFailed, match="ours: RuntimeError: in a window"):
        against_fakes(("torch",), going_on, ours="window")


@pytest.mark.parametrize(
    ("mistake", "kind", "words"),
    [
        ("told", UserError, r"^mend this\.$"),
        ("crash", ProcessFailed, "^x: ValueError: two lines$"),
        ("exit", ProcessFailed, "^x: ended with code 3$"),
        ("killed", ProcessFailed, "^x: it was killed, .* measure this row alone"),
        ("silent", ProcessFailed, "^x: no answer within 5 s$"),
    ],
)
def test_a_process_that_fails_tells_why(fake, mistake, kind, words):
    patience = 5 if mistake == "silent" else 60
    with started(fake("x", mistake=mistake), patience) as process:
        with pytest.raises(kind, match=words) as failure:
            process.facts()
        if mistake == "exit":
            assert failure.value.log.endswith("last words")
    assert process._process.poll() is not None


def test_an_interrupted_wait_leaves_no_thread(fake):
    """Python would wait at its end for the timer that gives a silent process up."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    threads = set(threading.enumerate())
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            started(fake("x", mistake="silent"), 3600) as process,
        ):
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            process.facts()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert process._process.poll() is not None
    waiting = set(threading.enumerate()) - threads
    for thread in waiting:
        thread.join(5)
    assert not any(thread.is_alive() for thread in waiting)


def test_spread_and_ratios():
    figures = spread([4.0, 1.0, 2.0, 3.0])
    assert (figures["median"], figures["min"], figures["max"], figures["iqr"]) == (2.5, 1, 4, 1.5)
    assert ratios([2, 2, 3], [1, 4, 3]) == {"median": 1.0, "min": 0.5, "max": 2.0}


# ------------------------------------------------------------------ peers


def peer_job(name, trainable_layers, row="synthetic"):
    settings = config.load(QUICKSTART, {"model.name": name, "model.filters": "4"})
    settings.model.trainable_layers = trainable_layers
    settings.data.image_size = 96 if name == "inceptionv3" else 32
    settings.train.batch_size = settings.eval.batch_size = 2
    settings.model.head.update(batch_norm=True, dense=8, l2=0.01)
    return settings, jobs.describe(settings, row, steps=1)


def our_parameters(settings):
    model = classifier.build(settings.model, 4)
    _, params, _ = classifier.split(model)
    layers = classifier.trainable_layer_names(model, settings.model.trainable_layers)
    trained, frozen = optim.partition(params, layers)
    counts = {"trainable": optim.count(trained), "frozen": optim.count(frozen)}
    return counts, len(trained["backbone"])


CASES = [(name, n) for name in registry.names() for n in (-1, 0, 15)]


@pytest.mark.parametrize(("name", "n"), CASES)
def test_keras_peers_have_our_parameters(name, n, monkeypatch):
    monkeypatch.syspath_prepend(PEERS)
    import keras_network

    settings, job = peer_job(name, n)
    assert keras_network.parameters(keras_network.build(job)) == our_parameters(settings)[0]


COUNT = """
import json, sys
import torch_networks
job = json.loads(sys.argv[1])
network = torch_networks.Network(job)
torch_networks.freeze(network, job["parameter_layers"])
sizes = [(p.requires_grad, p.numel()) for p in network.parameters()]
names = {True: "trainable", False: "frozen"}
print(json.dumps({names[kind]: sum(n for k, n in sizes if k == kind) for kind in names}))
"""


@pytest.fixture
def torch_python():
    """An interpreter with torch; never this process, which it would share with TensorFlow."""
    named = os.environ.get("CXRJAX_TORCH_PYTHON")
    if not named and importlib.util.find_spec("torchvision") is None:
        pytest.skip("no torchvision here (not a dependency); CXRJAX_TORCH_PYTHON may name one")
    return named or sys.executable


@pytest.mark.parametrize(("name", "n"), CASES)
def test_torch_peers_have_our_parameters(name, n, torch_python):
    settings, job = peer_job(name, n)
    ours, layers = our_parameters(settings)
    job |= {"config": "", "parameter_layers": layers}
    command = [torch_python, "-c", COUNT, json.dumps(job)]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(PEERS)}, capture_output=True, text=True, check=True
    )
    theirs = json.loads(done.stdout)
    if name == "inceptionv3":  # torchvision's batch norm has a scale, which Keras' has not
        assert sum(theirs.values()) == sum(ours.values()) + 17_216
    else:
        assert theirs == ours


@pytest.mark.parametrize("peer", jobs.PEERS)
@pytest.mark.parametrize("row", ["synthetic", "forward"])
def test_peers_run_windows(peer, row, tmp_path, request):
    python = request.getfixturevalue("torch_python") if peer == "torch" else sys.executable
    settings, job = peer_job("baseline", 5, row)
    counts, layers = our_parameters(settings)
    script = PEERS / ("torch_peer.py" if peer == "torch" else "keras_peer.py")
    environment = {"KERAS_BACKEND": peer.removeprefix("keras-"), "HOME": str(tmp_path)}
    job |= {"config": "", "parameter_layers": layers}
    with Measured(peer, [python, str(script)], job, environment, seconds=300) as process:
        facts = process.facts()
        assert facts["parameters"] == counts and facts["steps"] == 1
        assert process.window() > 0 and process.window() > 0
        assert process.finish()["peak_memory"]["bytes"] > 1e7
