"""The folder of one run: its configuration, its records, and who may write to it."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from cxrjax import config as config_lib
from cxrjax import log, verdict
from cxrjax.checkpoint import complete
from cxrjax.config import Config
from cxrjax.errors import MALFORMED, UserError, reason, writing

_REMEDY = "choose another --workdir"
# Where things lie may differ between machines; what they are is held by the data set's digest.
PLACES = ("data.dir", "data.cache")


def keep_places(config: Config) -> None:
    """Makes the places that a configuration names hold elsewhere: resuming needs no variable."""
    place = config.data.dir or os.environ.get("CXRJAX_DATA", "")
    if config.data.name != "phantom" and place:
        config.data.dir = _absolute(place)
    if config.data.cache:
        config.data.cache = _absolute(config.data.cache)
    if config.model.weights not in ("", "none", "imagenet"):
        config.model.weights = _absolute(config.model.weights)
    if config.train.start_from:
        config.train.start_from = _absolute(config.train.start_from)


def follow_data(config: Config) -> None:
    """Takes CXRJAX_DATA for the images of a run that are no longer where its config.json says.

    Not for a new run: a place mistyped there would be trained on other images.
    """
    there, now = config.data.dir, os.environ.get("CXRJAX_DATA", "")
    if config.data.name == "phantom" or not there or not now:
        return
    if not os.path.exists(_absolute(there)) and os.path.exists(_absolute(now)):
        log.say(f"{there} does not exist: images are taken from CXRJAX_DATA ({now})")
        config.data.dir = now


def _absolute(place: str) -> str:
    return os.path.abspath(os.path.expanduser(place))


def _identity(config: Config) -> dict[str, Any]:
    """The fields by which a run is known: weight file and first run by name, as folders are moved.

    What they hold is compared by `trained.check_same_input` and `trained.check_same_start`.
    """
    fields = config_lib.fields(config)
    return fields | {
        field: Path(fields[field]).name for field in ("model.weights", "train.start_from")
    }


class OtherConfiguration(UserError):
    """A folder holds a run of another configuration; `told` is the message without its remedy."""

    def __init__(self, told: str):
        super().__init__(f"{told}; {_REMEDY}.")
        self.told = told


class RunFolder:
    """A claimed run folder. The claim ends with `close` or with the process."""

    def __init__(self, path: Path, config: Config):
        """Creates or reopens `path`.

        Raises:
          UserError: when it belongs to another configuration, holds foreign files, is in use by
            another process or cannot be written.
        """
        self.path, self._tested = path, config.eval.test
        self._refuse_foreign(config)
        with writing(path, _REMEDY):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = open(path / ".lock", "w")  # noqa: SIM115 - held as long as the run
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{path} is in use by another process; wait for it or choose another --workdir."
                ) from None

    def keep_config(self, config: Config) -> None:
        """Writes config.json; called once the configuration has proved to work."""
        with writing(self.path, _REMEDY):
            log.write_text(self.config_file, config_lib.to_json(config))

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def result(self) -> dict[str, Any] | None:
        """The result of the finished run, or None: also where it is to be tested now."""
        if not self.result_file.exists():
            return None
        try:
            result = json.loads(self.result_file.read_text(encoding="utf-8"))
            # What cannot be told is no result: to take it for an untested one costs a look.
            verdict.summary(result)
            return None if self._tested and "test" not in result else result
        except (OSError, *MALFORMED) as error:
            raise UserError(
                f"{self.result_file} cannot be read ({reason(error)}); delete it and run the same "
                "command again: the evaluation is repeated."
            ) from error

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Replaces metrics.jsonl, so that it never runs ahead of the checkpoint resumed from."""
        with writing(self.path, _REMEDY):
            log.write_text(self.path / "metrics.jsonl", "".join(map(log.json_line, history)))

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes result.json, which marks the run as finished."""
        with writing(self.path, _REMEDY):
            log.write_json(self.result_file, result)

    def close(self) -> None:
        """Releases the claim."""
        self._lock.close()

    def _is_begun(self) -> bool:
        """Whether there is something that another configuration would spoil."""
        return self.result_file.exists() or bool(complete(self.path / "checkpoints"))

    def _is_ours(self) -> bool:
        """Whether config.json is there and of a run; model folders of others have one as well."""
        if not self.config_file.is_file():
            return False
        if self._is_begun():
            return True  # what is wrong with it is told when it is read
        try:
            config_lib.load(str(self.config_file))
        except UserError:
            return False
        return True

    def _refuse_foreign(self, config: Config) -> None:
        if self.path.is_dir() and not self._is_ours():
            strangers = sorted(p.name for p in self.path.iterdir() if not p.name.startswith("."))
            if strangers:
                raise UserError(
                    f"{self.path} is not a run folder and holds other files ({strangers[0]}); "
                    "choose another --workdir."
                )
        if not self.config_file.is_file() or not self._is_begun():
            return  # nothing is lost by another configuration
        old, new = _identity(config_lib.load(str(self.config_file))), _identity(config)
        if config.eval.test:
            old["eval.test"] = True  # what was not tested may be, later
        changed = [f"{f} was {old[f]!r}, now {new[f]!r}" for f in new if old[f] != new[f]]
        changed = [text for text in changed if text.split(" ", 1)[0] not in PLACES]
        if changed:
            raise OtherConfiguration(
                f"{self.path} holds a run of another configuration ({'; '.join(changed[:3])}"
                f"{'; ...' if len(changed) > 3 else ''})"
            )
