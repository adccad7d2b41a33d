"""The parent's side of a benchmark: a process that is given a job and asked for windows."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cxrjax.errors import UserError

_TAIL = 2000  # characters of a failed process's standard error that are worth keeping


class ProcessFailed(Exception):
    """A benchmarked process broke down; `log` is the end of its standard error."""

    def __init__(self, name: str, text: str, log: str):
        super().__init__(f"{name}: {text}")
        self.name = name
        self.log = log


def _ending(code: int) -> str:
    if code != -signal.SIGKILL:
        return f"ended with code {code}"
    return (
        "it was killed, as the system does when memory runs out; processes in turn hold theirs all "
        "at once: measure this row alone, or in smaller batches"
    )


class Measured:
    """A running job, see `serve`. A context manager: leaving it ends the process."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        job: Mapping[str, Any],
        env: Mapping[str, str],
        *,
        seconds: float,
    ):
        """Starts the process; `facts` waits until it is ready.

        Args:
          name: of the process, for messages.
          seconds: after which a silent process is given up, for preparation and for each window.
        """
        self._name = name
        self._seconds = seconds
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=dict(env),
            text=True,
        )
        self._send(json.dumps(job))

    def facts(self) -> dict[str, Any]:
        """What the process tells of itself once it is warm; blocks until then."""
        return self._answer()

    def window(self) -> float:
        """Images per second of one window."""
        self._send("go")
        answer = self._answer()
        return answer["images"] / answer["seconds"]

    def finish(self) -> dict[str, Any]:
        """Ends the job; returns what the process knows at its end."""
        self._send("end")
        return self._answer()

    def __enter__(self) -> Measured:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died; the answer that is missing tells why

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        late = threading.Timer(self._seconds, self._process.kill)
        late.start()
        try:
            line = self._process.stdout.readline()
            in_time = late.is_alive()
        finally:
            late.cancel()  # also when interrupted: Python waits for its threads before it ends
        if not in_time:
            raise self._failed(f"no answer within {self._seconds:.0f} s")
        if not line:
            raise self._failed(_ending(self._process.wait()))
        answer = json.loads(line)
        if answer.get("told"):
            raise UserError(answer["error"])
        if "error" in answer:
            raise self._failed(answer["error"])
        return answer

    def _failed(self, text: str) -> ProcessFailed:
        size = self._errors.seek(0, 2)
        self._errors.seek(max(0, size - _TAIL))
        log = self._errors.read().decode(errors="replace").strip()
        return ProcessFailed(self._name, text, log)


def peer_script(peer: str) -> Path:
    """The script that runs a peer.

    Raises:
      UserError: when the package is installed without the repository around it.
    """
    name = "torch_peer.py" if peer == "torch" else "keras_peer.py"
    path = Path(__file__).resolve().parents[2] / "experiments" / "peers" / name
    if not path.is_file():
        raise UserError(
            f"the peer {peer} is run by {path}, which is not there; run cxrjax from its repository."
        )
    return path
