"""Training from configuration to result: prepare, build, train, pick the best epoch, evaluate."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from cxrjax import ahead, build, evaluation, log, optim, outcome, prefix, runtime, step, trained
from cxrjax.checkpoint import Checkpoints
from cxrjax.config import Config
from cxrjax.data import batches, dataset, framing
from cxrjax.data.resident import ResidentInput
from cxrjax.errors import UserError
from cxrjax.run_folder import RunFolder
from cxrjax.stop_signals import StopSignals


class Training:
    """A run between preparation and evaluation: the compiled steps and everything they change."""

    def __init__(self, config: Config, data: dataset.Dataset, folder: RunFolder):
        self.config, self.data, self.folder = config, data, folder
        build.check_steps(config, data)
        self.train_positions = dataset.training_positions(data, config)
        _, self.recipe, variables = build.network(config, data, folder.path)
        tx, self._train_step = build.train_program(config, self.recipe)
        self._eval_step = jax.jit(functools.partial(step.eval_step, self.recipe))
        settings = build.settings(config, data)
        self.state = build.init_state(variables, self.recipe, tx, settings)
        self._steps_per_epoch = int(settings.steps_per_epoch)
        self.tx = tx
        self.input = build.make_input(config, data)
        if prefix.applies(config, self.recipe):
            images = self.input.batches
            self.input = prefix.frozen_maps(config, self.recipe, data, images, variables)
        elif config.cache.views:
            log.say(prefix.VIEWS_UNUSED)
        self._scans: dict[str, Any] = {}  # of a field of the batch
        self.best = build.copy_arrays((self.state.params, self.state.batch_stats))
        self.note: dict[str, Any] = {
            "finished": False,
            "history": [],
            "best_epoch": 0,
            "best_loss": math.inf,
            "epochs_since_best": 0,
            "epoch_seconds": 0.0,
            "digest": data.digest,
            "fingerprint": data.fingerprint,
            "input": self.contract(variables),
            "config": config.to_dict(),
        }
        self.checkpoints = Checkpoints(folder.path / "checkpoints")

    def contract(self, variables: build.Variables) -> dict[str, Any]:
        """What a prediction must repeat: size, channels, normalisation, classes, weights."""
        frame = self.config.data.frame
        lungs = {} if frame == framing.WHOLE else {"segmentation": framing.segmentation()}
        return lungs | {
            "model": self.config.model.name,
            "classes": list(self.data.classes),
            "image_size": self.config.data.image_size,
            "frame": frame,
            "channels": len(self.recipe.mean),
            "mean": list(self.recipe.mean),
            "std": list(self.recipe.std),
            "pretrained": variables.source,
            "start_from": variables.start,
        }

    # ------------------------------------------------------------------ resume

    def resume(self) -> None:
        """Goes on from the newest checkpoint, if there is one.

        Raises:
          UserError: when it is damaged, or of other data, another split, other pretrained weights
            or another normalisation.
        """
        newest = self.checkpoints.latest()
        if newest is None:
            return
        note = self.checkpoints.note(newest, trained.NOTE)
        now = (self.data.digest, self.data.fingerprint)
        if (note["digest"], note["fingerprint"]) != now:
            raise UserError(
                f"{self.folder.path} was trained on other data or another split than the one found "
                "now; point --config.data.dir at the original data or choose another --workdir."
            )
        trained.check_same_input(note["input"], self.note["input"], self.folder.path)
        saved = self.checkpoints.arrays(newest, (self.state.held(), self.best))
        held, self.best = build.unbound(saved)
        self.state = step.TrainState.restored(held)
        self.note = note | {
            "best_loss": math.inf if note["best_loss"] is None else note["best_loss"]
        }
        self.folder.write_history(note["history"])
        log.say(f"resumed after step {int(self.state.step)}, epoch {len(note['history']) // 2}")

    def save(self, *, wait: bool = False) -> None:
        """Starts a checkpoint of the state, the best weights so far and the history."""
        loss = self.note["best_loss"]
        note = self.note | {"best_loss": None if math.isinf(loss) else loss}
        # Steps plus validated epochs: unlike the step alone it also grows with a validation.
        at = int(jax.device_get(self.state.step)) + len(self.note["history"]) // 2
        self.checkpoints.save(at, (self.state.held(), self.best), note, wait=wait)

    # ------------------------------------------------------------------ epochs

    def fit(self) -> None:
        """Trains until the last epoch or until validation loss stops improving."""
        config = self.config.train
        self.folder.keep_config(self.config)  # not before `resume` has agreed
        with StopSignals() as stop, jax.transfer_guard("disallow"):
            compiling = self._compile_ahead()
            self._prepare(stop)
            compiling.wait()
            while not self.note["finished"]:
                epoch = len(self.note["history"]) // 2
                train = self._train_epoch(epoch, stop)
                validation = self._validate(epoch)
                self._check_finite(validation["loss"], epoch)
                self.note["history"] += [train, validation]
                self.note["epoch_seconds"] = 0.0
                self._keep_best(validation["loss"], epoch + 1)
                stale = self.note["epochs_since_best"]
                self.note["finished"] = epoch + 1 >= config.epochs or (0 < config.patience <= stale)
                with jax.transfer_guard("allow"):
                    self.state = self.state._replace(totals=step.no_totals(self.recipe.n_classes))
                    self.save()
                self.folder.write_history(self.note["history"])
                log.say(_epoch_line(train, validation, config.epochs))
                if stop.requested:
                    self._interrupt()

    def _prepare(self, stop: StopSignals) -> None:
        """Stores the maps of frozen layers that training needs: not those of the test split."""
        if not isinstance(self.input, prefix.FrozenMaps) or self.note["finished"]:
            return
        views = prefix.views(self.config, self.config.train.epochs)
        wanted = [(self.train_positions, view) for view in views]
        self.input.prepare([*wanted, (self.data.splits["validation"], 0)], lambda: stop.requested)
        if stop.requested:
            self._interrupt()

    def _compile_ahead(self) -> ahead.Ahead:
        """Starts to compile what the first epoch needs, except an accelerator's scan over stored
        maps: whether they fit there is known when they are computed."""
        compiling, config = ahead.Ahead(), self.config
        if self.note["finished"]:
            return compiling
        evaluated = (self.state.params, self.state.frozen, self.state.batch_stats)
        compiling.compile(self._eval_step, *evaluated, self._batch_like(config.eval.batch_size))
        if runtime.steps_per_dispatch() == 1 or self.input.name == "tfdata":
            batch = self._batch_like(config.train.batch_size)
            compiling.compile(self._train_step, self.state, batch)
        if runtime.steps_per_dispatch() == 1 or not isinstance(self.input, ResidentInput):
            return compiling
        steps = min(self._steps_per_epoch, runtime.steps_per_dispatch())
        chosen = jax.ShapeDtypeStruct((steps, config.train.batch_size), np.int32)
        mask, view = chosen.update(dtype=np.bool_), jax.ShapeDtypeStruct((), np.int32)
        arrays = (self.state, self.input.rows, self.input.labels, chosen, mask, view)
        compiling.compile(self._scan(self.input.field), *arrays)
        return compiling

    def _batch_like(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch of the run's input path."""
        if isinstance(self.input, prefix.FrozenMaps):
            field, of_one, dtype = "maps", self.input.shape, self.input.dtype
        else:
            field, of_one, dtype = "image", (*self.data.store.images.shape[1:], 1), np.uint8
        whole = jax.ShapeDtypeStruct((size,), np.int32)
        return {
            field: jax.ShapeDtypeStruct((size, *of_one), dtype),
            "label": whole,
            "index": whole,
            "mask": whole.update(dtype=np.bool_),
        }

    def _scan(self, field: str) -> Any:
        if field not in self._scans:
            self._scans[field] = build.scan_program(self.recipe, self.tx, field)
        return self._scans[field]

    def _interrupt(self) -> NoReturn:
        log.say("stopping")
        self.checkpoints.wait()
        raise KeyboardInterrupt(
            f"the state is saved in {self.folder.path}; run the same command to resume."
        )

    def _train_epoch(self, epoch: int, stop: StopSignals) -> dict[str, Any]:
        config = self.config
        plan = batches.training_plan(
            self.train_positions,
            config.train.batch_size,
            config.seed,
            epoch,
            config.cache.views if isinstance(self.input, prefix.FrozenMaps) else 0,
        )
        done = int(jax.device_get(self.state.step)) - epoch * plan.steps
        counts = plan.mask[done:].sum(1)
        before, start, first = self.note["epoch_seconds"], time.perf_counter(), None
        previous, taken = None, 0
        what = f"epoch {epoch + 1}/{config.train.epochs}"
        with log.progress_bar(total=int(counts.sum()), what=what, unit="images") as bar:
            for losses, steps in self._steps(plan, done):
                # Looking at the loss one dispatch late keeps the device busy meanwhile.
                if previous is not None:
                    self._check_finite(previous, epoch)
                    # What was dispatched first compiles: timed is what follows it.
                    first = first or (time.perf_counter(), taken)
                previous = losses
                bar.update(int(counts[taken : taken + steps].sum()))
                taken += steps
                # On a CPU that, too, is done by now: see `runtime.start`.
                if first is None and jax.default_backend() == "cpu":
                    first = time.perf_counter(), taken
                if stop.requested:
                    self.note["epoch_seconds"] = before + time.perf_counter() - start
                    self.save()
                    self._interrupt()
        if previous is not None:
            self._check_finite(previous, epoch)
        end = time.perf_counter()
        rate = None
        if first is not None and first[1] < taken:
            rate = float(counts[first[1] :].sum() / (end - first[0]))
        elif epoch > 0 and done == 0:  # the whole epoch was one dispatch
            rate = float(counts.sum() / (end - start))
        return self._train_line(epoch, before + end - start, rate or None)

    def _steps(self, plan: batches.Plan, done: int) -> Iterator[tuple[jax.Array, int]]:
        """Takes the plan's steps from `done` on; yields losses and number of each dispatch."""
        at_once, source = runtime.steps_per_dispatch(), self.input
        if isinstance(source, prefix.FrozenMaps):
            source = source.resident()
        if at_once == 1 or not isinstance(source, ResidentInput):
            for batch in self.input.batches(plan, done):
                self.state, loss = self._train_step(self.state, batch)
                yield loss, 1
            return
        run = self._scan(source.field)
        view = jax.device_put(np.int32(plan.view))
        for start in range(done, plan.steps, at_once):
            part = slice(start, start + at_once)
            chosen = jax.device_put((plan.index[part], plan.mask[part]))
            self.state, losses = run(self.state, source.rows, source.labels, *chosen, view)
            yield losses, len(plan.index[part])

    def _train_line(self, epoch: int, seconds: float, rate: float | None) -> dict[str, Any]:
        totals = jax.device_get(self.state.totals)
        recall = totals["correct"] / np.maximum(totals["support"], 1)
        return {
            "epoch": epoch + 1,
            "split": "train",
            "loss": float(totals["loss"] / totals["support"].sum()),
            "accuracy": float(totals["correct"].sum() / totals["support"].sum()),
            "recall": dict(zip(self.data.classes, map(float, recall), strict=True)),
            "lr": self._rate(),
            "seconds": round(seconds, 3),
            "images_per_second": rate and round(rate, 2),
        }

    def _rate(self) -> float:
        """The head's learning rate at the last step taken."""
        train, settings = self.config.train, self.state.settings
        if train.schedule == "constant" and not train.warmup:
            return train.learning_rate
        with jax.transfer_guard("allow"):
            return float(step.learning_rates(settings, self.state.step - 1)["head"])

    def _validate(self, epoch: int) -> dict[str, Any]:
        start = time.perf_counter()
        predictions = self.predict("validation", *self.state.evaluated)
        seconds = time.perf_counter() - start
        labels = self.data.store.labels[self.data.splits["validation"]]
        summary = evaluation.summarise_epoch(labels, predictions, self.data.classes)
        return {
            "epoch": epoch + 1,
            "split": "validation",
            **summary,
            **({"trained_on": True} if self.config.train.on_validation else {}),
            "lr": self._rate(),
            "seconds": round(seconds, 3),
            "images_per_second": round(len(labels) / seconds, 2),
        }

    def predict(self, split: str, params: optim.Params, batch_stats: Any) -> evaluation.Predictions:
        """Probabilities and losses over a whole split with the given weights."""
        run = functools.partial(self._eval_step, params, self.state.frozen, batch_stats)
        return evaluation.predict(
            run, self.input.batches, self.data.splits[split], self.config.eval.batch_size, split
        )

    def predict_images(self, images: np.ndarray, what: str) -> np.ndarray:
        """Probabilities float32 [N, K] of uint8 [N, S, S] with the best weights."""
        params, batch_stats = self.best
        run = functools.partial(self._eval_step, params, self.state.frozen, batch_stats)
        size, source = self.config.eval.batch_size, self.input
        if not isinstance(source, prefix.FrozenMaps):
            return evaluation.predict_images(run, images, size, what)
        # The whole network would be compiled for this alone.
        return evaluation.predict_images(run, images, size, what, source.behind)

    def _keep_best(self, loss: float, epoch: int) -> None:
        # A loss on images trained on chooses nothing: the last epoch counts.
        if self.config.train.on_validation or loss < self.note["best_loss"]:
            self.best = build.copy_arrays(self.state.evaluated)
            self.note |= {"best_loss": loss, "best_epoch": epoch, "epochs_since_best": 0}
        else:
            self.note["epochs_since_best"] += 1

    def _check_finite(self, loss: jax.Array | float, epoch: int) -> None:
        if not np.isfinite(jax.device_get(loss)).all():
            raise UserError(
                f"training diverged in epoch {epoch + 1} (the loss is not finite); lower "
                f"--config.train.learning_rate ({self.config.train.learning_rate:g}) and choose "
                "another --workdir."
            )


def train_and_evaluate(config: Config, workdir: Path) -> tuple[dict[str, Any], bool]:
    """Runs, resumes, or finds finished the run in `workdir`.

    Returns:
      result.json's content, and whether the run had been finished before.
    Raises:
      UserError: for bad input; what was written before stays.
      KeyboardInterrupt: after SIGINT or SIGTERM, with the state saved.
    """
    folder = RunFolder(workdir, config)
    try:
        if config.train.start_from:
            trained.check_same_start(config, workdir)
        if (result := folder.result()) is not None:
            return result, True
        dataset.located(config.data)  # what is missing is told before weights are downloaded
        build.check(config, workdir)  # a misspelt network is told before the data are decoded
        log.say(f"device: {runtime.describe()['device']}")
        training = Training(config, dataset.prepare(config), folder)
        with contextlib.closing(training.checkpoints):
            training.resume()
            training.fit()
            training.checkpoints.wait()
            return outcome.write(training), False
    except jax.errors.JaxRuntimeError as error:
        if not runtime.out_of_memory(error):
            raise
        raise UserError(
            f"the device has too little memory for batches of {config.train.batch_size}; lower "
            "--config.train.batch_size and --config.eval.batch_size, or set "
            "--config.train.remat=True or --config.input.path=tfdata."
        ) from error
    finally:
        folder.close()


def _epoch_line(train: dict[str, Any], validation: dict[str, Any], epochs: int) -> str:
    rate = train["images_per_second"]
    seen = " (trained on)" if validation.get("trained_on") else ""
    return (
        f"epoch {train['epoch']}/{epochs}: "
        f"train loss {train['loss']:.4f} accuracy {train['accuracy']:.4f}, "
        f"validation{seen} loss {validation['loss']:.4f} accuracy {validation['accuracy']:.4f}, "
        f"{train['seconds'] + validation['seconds']:.0f} s"
        + (f", {rate:.1f} images/s" if rate else "")
    )
