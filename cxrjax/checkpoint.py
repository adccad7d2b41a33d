"""Asynchronous, atomic checkpoints of array trees with a JSON note; the only user of orbax."""

from __future__ import annotations

import copy
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cxrjax import packing
from cxrjax.errors import MALFORMED, UserError

_ARRAYS, _LAYOUT, _NOTE = "arrays", "layout", "note"
_TREE = "state"  # in the place of arrays and layout older versions had the tree itself


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, in any order: those half written have longer names."""
    return [path for path in folder.glob("*") if path.name.isdigit() and path.is_dir()]


class Checkpoints:
    """The newest two checkpoints of a run, in `folder`/<step>.

    A checkpoint appears under its name only when it is complete (orbax writes elsewhere and
    renames), so a kill at any moment leaves the one before usable.
    """

    def __init__(self, folder: Path, *, read_only: bool = False):
        """Opens `folder`; with `read_only` nothing in it is created, cleaned up or changed.

        Raises:
          UserError: when a checkpoint is damaged, or the folder cannot be written.
        """
        import orbax.checkpoint as ocp

        # Its threads log the traceback of a failed write, which reaches the caller anyway.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        _quieten_late_writes()
        self._ocp = ocp
        self.folder = folder
        # The checkpoint before that of a finished run has other weights than its results are of.
        self._remedy = (
            "restore that folder or train anew"
            if read_only
            else "delete that folder to go on from the checkpoint before it"
        )
        try:
            with self._writing():
                options = ocp.CheckpointManagerOptions(
                    max_to_keep=2, create=True, cleanup_tmp_directories=True
                )
                if read_only:
                    options = ocp.CheckpointManagerOptions(read_only=True)
                self._manager = ocp.CheckpointManager(
                    folder.absolute(),
                    options=options,
                    item_names=(_ARRAYS, _LAYOUT, _NOTE, _TREE),
                )
        except MALFORMED as error:  # orbax reads a little of every checkpoint here
            raise UserError(
                f"a checkpoint in {folder} is damaged ({_one_line(error)}); restore that folder or "
                "train anew."
            ) from error

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, arrays: Any, note: dict[str, Any], *, wait: bool = False) -> None:
        """Starts writing; arrays and note may change as soon as this returns.

        Args:
          step: its number; must be larger than the newest one's.
          arrays: a pytree of arrays.
          note: JSON values.
          wait: return only when it is on disk.
        Raises:
          UserError: when this write, or the one before it, met a full or read-only disk.
        """
        with self._writing():
            vectors, layout = packing.pack(arrays)
            args = self._ocp.args.Composite(
                **{
                    _ARRAYS: self._ocp.args.StandardSave(vectors),
                    _LAYOUT: self._ocp.args.JsonSave({"arrays": layout}),
                    # Written by a thread, once the folder is there.
                    _NOTE: self._ocp.args.JsonSave(copy.deepcopy(note)),
                }
            )
            self._manager.save(step, args=args, force=True)
            if wait:
                self._manager.wait_until_finished()

    def note(self, step: int, form: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON note saved with `step`.

        Args:
          form: the types of its entries by name; of an inner object, again such a mapping.
        Raises:
          UserError: when the checkpoint is damaged or its note is of another form.
        """
        args = self._ocp.args.Composite(**{_NOTE: self._ocp.args.JsonRestore()})
        note = json.loads(json.dumps(self._restore(step, args)[_NOTE]))
        if odd := _odd(note, form):
            raise self._unreadable(step, ValueError(f"its note lacks a sound entry {odd}"))
        return note

    def arrays(self, step: int, like: Any) -> Any:
        """The arrays saved with `step`.

        Args:
          like: a tree of the same structure, shapes and dtypes, of arrays or ShapeDtypeStructs.
        Raises:
          UserError: when the checkpoint is damaged or holds another structure.
        """
        if self._is_tree(step):
            return self._saved(step, _TREE, like)
        return self._unpacked(step, lambda found: packing.fitted(found, like))

    def all_arrays(self, step: int) -> Any:
        """The arrays saved with `step` as nested dicts and lists, whatever they are.

        They come to this process's first device, wherever they were saved.

        Raises:
          UserError: when the checkpoint is damaged.
        """
        if self._is_tree(step):
            return self._saved(step, _TREE)
        return self._unpacked(step, packing.nested)

    def _is_tree(self, step: int) -> bool:
        return (self.folder / str(step) / _TREE).is_dir()

    def _unpacked(self, step: int, into: Callable[[dict[packing.Name, np.ndarray]], Any]) -> Any:
        """The arrays by name, given to `into`."""
        args = self._ocp.args.Composite(**{_LAYOUT: self._ocp.args.JsonRestore()})
        layout = self._restore(step, args)[_LAYOUT]
        vectors = jax.device_get(self._saved(step, _ARRAYS))
        try:
            return into(packing.unpack(vectors, layout["arrays"]))
        except MALFORMED as error:
            raise self._unreadable(step, error) from error

    def _saved(self, step: int, item: str, like: Any = None) -> Any:
        """What orbax saved with `step`, in the structure of `like` if that is given."""
        if like is None:
            like = self._saved_like(step, item)
        args = self._ocp.args.Composite(**{item: self._ocp.args.StandardRestore(like)})
        return self._restore(step, args)[item]

    def _saved_like(self, step: int, item: str) -> Any:
        """Shapes and dtypes of what orbax saved, on this process's first device."""
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        try:
            tree = self._ocp.StandardCheckpointer().metadata(
                self.folder.absolute() / str(step) / item
            )
            tree = getattr(tree, "item_metadata", tree)
            tree = getattr(tree, "tree", tree)
            return jax.tree.map(
                lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=here), tree
            )
        except Exception as error:
            raise self._unreadable(step, error) from error

    def wait(self) -> None:
        """Returns when every started write is on disk; raises as `save` does."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the background threads."""
        with self._writing():
            self._manager.close()

    def _restore(self, step: int, args: Any) -> Any:
        try:
            return self._manager.restore(step, args=args)
        except Exception as error:  # orbax raises many types for a damaged or foreign folder
            raise self._unreadable(step, error) from error

    def _unreadable(self, step: int, error: Exception) -> UserError:
        where = self.folder / str(step)
        return UserError(f"checkpoint {where} cannot be read ({_one_line(error)}); {self._remedy}.")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # tensorstore reports a full disk as a ValueError with this text
            chain, texts = error, []
            while chain is not None:
                texts.append(str(chain))
                chain = chain.__cause__ or chain.__context__
            for reason in (
                "No space left on device",
                "Disk quota exceeded",
                "Permission denied",
                "Read-only file system",
                "Not a directory",
            ):
                if any(reason in text for text in texts):
                    raise UserError(
                        f"cannot write the checkpoint to {self.folder}: {reason.lower()}; mend it "
                        "and run the same command again to resume, or choose another --workdir."
                    ) from error
            raise


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _odd(found: Any, form: Any, name: str = "") -> str | None:
    """The first entry that is missing or of another type than in `form`; None where all is well."""
    if not isinstance(form, Mapping):
        return None if isinstance(found, form) else name
    for key, inner in form.items():
        within = f"{name}.{key}" if name else key
        if not isinstance(found, dict) or key not in found:
            return within
        if odd := _odd(found[key], inner, within):
            return odd
    return None


def _quieten_late_writes() -> None:
    """Keeps tensorstore's writes that end after a failed one from printing tracebacks.

    On a full disk the first failed write ends orbax's event loop; those still under way then find
    it closed, and have nobody to raise it to. The failure itself is raised.
    """
    before = sys.unraisablehook
    if getattr(before, "quietens_late_writes", False):
        return

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        late = unraisable.exc_type is RuntimeError
        if not (late and str(unraisable.exc_value) == "Event loop is closed"):
            before(unraisable)

    hook.quietens_late_writes = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook
