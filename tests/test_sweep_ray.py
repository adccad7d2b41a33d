"""Units as tasks of a local Ray cluster: a worker killed mid-trial costs nothing but time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="pip install -e '.[ray]' to test the Ray backend")

BODY = """
from cxrjax import config as c
def get_config():
    s = c.default()
    s.data.phantom.count = 96
    s.data.image_size = 32
    s.model.filters = 4
    s.train.batch_size = 8
    s.train.epochs = 40
    s.train.patience = 0
    s.eval.resamples = 100
    s.sweep.finish = "none"
    s.sweep.stack = "never"
    return s
def get_grid():
    return {"train.learning_rate": (0.02, 0.01, 0.005, 0.002, 0.001, 0.0005)}
"""


def workers():
    """Processes of Ray that run a unit now."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue  # gone meanwhile
        if command.startswith(b"ray::work"):
            found.append(int(folder.name))
    return found


def test_a_killed_worker_is_replaced_and_the_ledger_complete(tmp_path):
    path, workdir = tmp_path / "sweep.py", tmp_path / "run"
    path.write_text(BODY)
    ledger = workdir / "trials.jsonl"
    command = [sys.executable, "-m", "cxrjax.sweep", "--config", str(path)]
    command += ["--workdir", str(workdir), "--backend", "ray", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (ledger.exists() and ledger.stat().st_size):
        time.sleep(0.05)
    victims = workers()
    assert victims, "no worker was at work when the first trial ended"
    os.kill(victims[0], signal.SIGKILL)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    records = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert len({record["key"] for record in records}) == len(records) == 6
    assert {record["status"] for record in records} == {"finished"}
    assert "winner" in out
    assert errors.count("trial ") >= 6


def test_a_sweep_on_ray_ends_at_sigterm_as_others_do(tmp_path):
    path, workdir = tmp_path / "sweep.py", tmp_path / "run"
    path.write_text(BODY)
    command = [sys.executable, "-m", "cxrjax.sweep", "--config", str(path)]
    command += ["--workdir", str(workdir), "--backend", "ray", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not workers():
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "run the same command to go on" in errors
