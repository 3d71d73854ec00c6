"""`train`: the loop over stages and updates, its checkpoints and its history."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time as clock
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from tqdm.auto import tqdm

from ..checkpoint import Model, read_model
from ..dialects import known_variables, standardise
from ..errors import ArgumentError, CheckpointError, explain
from ..model import Mosaic, MosaicConfig
from ..options import get_option
from ..variables import Schema
from .adapt import adapt_weights, init_model
from .config import Stage, TrainConfig
from .folder import RunFolder
from .history import history_of
from .loader import Batch, Loader
from .loss import channel_weights, latitude_weights
from .normalise import statistics
from .optim import Optimiser, split_parameters
from .ranks import Ranks
from .samples import TrainingData
from .schedule import EarlyStopping, Ema, learning_rate
from .step import TRAINING, RolloutLoss, check_finite, noise_of
from .validate import Validation, validate

# Losses of every channel are kept of each so many updates.
_CHANNELS_EVERY = 10
_STATE_VERSION = 1
_SEED_OF_STAGE = 1_000_003


def train(
    ds: xr.Dataset | Sequence[xr.Dataset],
    config: TrainConfig,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    init: str | os.PathLike[str] | Model | None = None,
    device: Any = None,
    workers: int = 4,
    progress: bool | None = None,
    tensorboard: bool = False,
) -> Model:
    """Train a model on analyses.

    Parameters
    ----------
    ds : Dataset or sequence of Dataset
        Analyses in any dialect, on one global latitude/longitude grid, which becomes the model's; several are put
        together in time.
    config : TrainConfig
        Such as one of `xmosaic.recipes`.
    out : path, optional
        Folder for checkpoints, history and the best model. Without one nothing is written.
    resume : bool
        Go on with the run in `out`: with the same data and configuration the result is that of an uninterrupted run,
        bit for bit on a CPU with as many threads.
    init : str, path or Model, optional
        Weights to begin with; channels are matched by name, those that are new begin afresh.
    device : str or torch.device, optional
        By default the GPU if there is one. Under ``torchrun`` each rank takes its own.
    workers : int
        Threads that read data ahead.
    progress : bool, optional
        Whether to show a progress bar; by default as `xmosaic.set_options` says.
    tensorboard : bool
        Whether to write losses for TensorBoard too, to ``out/tensorboard``.

    Returns
    -------
    Model
        Best on the validation period; its ``history`` is a labelled Dataset.

    Raises
    ------
    DatasetError
        Where the data can't be used: gaps longer than a sample, NaN, a constant channel.
    ArgumentError, CheckpointError, StoreError
        For what the texts say.
    """
    with Ranks.find(device) as ranks:
        return _Run(ds, config, out, resume, init, ranks, workers, progress, tensorboard).go()


class _Run:
    """One run of training."""

    def __init__(
        self,
        ds: Any,
        config: TrainConfig,
        out: Any,
        resume: bool,
        init: Any,
        ranks: Ranks,
        workers: int,
        progress: bool | None,
        tensorboard: bool,
    ) -> None:
        if not isinstance(config, TrainConfig):
            raise ArgumentError(explain("config is no TrainConfig", got=type(config).__name__, expected="a recipe"))
        self.config, self.ranks, self.workers = config, ranks, workers
        self.show = (get_option("progress") if progress is None else progress) and ranks.first
        self.folder = None if out is None else RunFolder(out)
        if (resume or tensorboard) and self.folder is None:
            raise ArgumentError(explain("resume=True and tensorboard=True need a folder", do="Pass out="))
        self.datasets = [ds] if isinstance(ds, xr.Dataset) else list(ds)
        start = None if init is None else init_model(init)
        self.schema = self._schema(start)
        self.network_config = self._network(start)
        step = pd.Timedelta(hours=self.network_config.step_hours)
        self.data = TrainingData(self.datasets, self.schema, step, self.network_config.num_history)
        self._open(resume)
        self.mean, self.std = self._statistics(start)
        self.model = self._model(start)
        self._prepare()
        self.lines: list[dict[str, Any]] = self.folder.lines() if self.folder and resume else []
        self.board = self._board() if tensorboard else None
        self.stage = self.place = self.update = 0
        self.best: float = math.inf
        self.best_weights: dict[str, torch.Tensor] | None = None
        if resume:
            self._resume()
        elif ranks.first:
            self._log({"kind": "schema", "update": 0, "schema": self.schema.to_dict()})

    # ------------------------------------------------------------------------------------------------ what is trained

    def _schema(self, start: Model | None) -> Schema:
        c = self.config
        if c.variables is not None:
            return Schema.from_variables(dict(c.variables), forcing=c.forcing, static=c.static)
        if start is not None:
            return start.schema
        return _known_channels(self.datasets[0], c)

    def _network(self, start: Model | None) -> MosaicConfig:
        s = self.schema
        counts: Any = {"num_variables": len(s.state), "num_forcings": len(s.forcing), "num_static": len(s.static)}
        network = dataclasses.replace(self.config.network, **counts)
        if start is not None:
            same = ("num_history", "step_hours")
            for name in same:
                if getattr(start.config, name) != getattr(network, name):
                    raise CheckpointError(
                        explain(
                            f"The weights to begin with have another {name}",
                            got=str(getattr(start.config, name)),
                            expected=str(getattr(network, name)),
                            do="Set it in the configuration's network",
                        )
                    )
        return network

    def _open(self, resume: bool) -> None:
        if self.folder is None:
            return
        if resume:
            _same_config(self.folder.config(), self.config.to_dict())
        elif self.ranks.first:
            self.folder.begin(self.config.to_dict())
        self.ranks.barrier()

    def _statistics(self, start: Model | None) -> tuple[np.ndarray, np.ndarray]:
        """Of the training period; channels of the weights to begin with keep theirs, which they were trained with."""
        cache = None if self.folder is None else self.folder.path / "statistics"
        mean, std = self.ranks.once(
            lambda: statistics(
                self.data, self.config.train, area=self.config.area_statistics, cache=cache, progress=self.show
            )
        )
        if start is not None:
            known = {c.name: i for i, c in enumerate((*start.schema.state, *start.schema.forcing))}
            for i, channel in enumerate((*self.schema.state, *self.schema.forcing)):
                if channel.name in known:
                    mean[i], std[i] = start.mean[known[channel.name]], start.std[known[channel.name]]
        return mean, std

    def _model(self, start: Model | None) -> Model:
        grid = self.data.grid
        static = self.data.static if start is None or start.static is None else start.static
        neighbors = None
        if start is not None and start.grid == grid and start.config.num_neighbors == self.network_config.num_neighbors:
            neighbors = (start.network.interp_to_hp.neighbors.numpy(), start.network.interp_to_ll.neighbors.numpy())
        network = Mosaic(self.network_config, np.array(grid.longitude), np.array(grid.latitude), static, neighbors)
        network.init_weights(torch.Generator().manual_seed(self.config.seed))
        if start is not None:
            adapt_weights(start, network, self.schema)
        return Model(network, self.schema, grid, self.mean, self.std, static, self._provenance(start))

    def _provenance(self, start: Model | None) -> dict[str, Any]:
        c = self.config
        about = {
            "name": "trained" if self.folder is None else self.folder.path.name,
            "title": f"Mosaic trained with xmosaic on {c.train[0]} … {c.train[1]}",
            "data": "; ".join(str(d.attrs.get("title", d.attrs.get("source", "untitled"))) for d in self.datasets),
            "license": "the data's, and yours" if start is None else start.license,
            "training": c.to_dict(),
        }
        return about | ({} if start is None else {"init": f"{start.name} {start.sha256[:12]}"})

    def _prepare(self) -> None:
        c, device = self.config, self.ranks.device
        self.network = self.model.network.to(device)
        self.network.recompute = c.checkpoint_activations
        self.area = torch.as_tensor(latitude_weights(self.data.grid), dtype=torch.float32, device=device)
        alpha = channel_weights(self.schema, c.channel_weights)
        self.alpha = torch.as_tensor(alpha, dtype=torch.float32, device=device)
        self.split = split_parameters(self.network, c.frozen)
        for name, weight in self.network.named_parameters():
            weight.requires_grad_(name not in set(self.split.frozen))
        self.loss = self.ranks.wrap(RolloutLoss(self.network, self.area, self.alpha, c.loss))
        self.optimiser = Optimiser(self.network, c, self.split)
        self.ema = None if c.ema is None else Ema(self.network, c.ema)
        self.stopper = EarlyStopping(c.patience)

    # ------------------------------------------------------------------------------------------------------- the loop

    def go(self) -> Model:
        """Train to the end; the best model."""
        with tqdm(
            total=self.config.updates,
            initial=self.update,
            desc="training",
            unit="update",
            disable=not self.show,
            dynamic_ncols=True,
        ) as bar:
            if self.show and self.update == 0:
                tqdm.write(str(self.split))
            while self.stage < len(self.config.stages):
                self._run_stage(self.config.stages[self.stage], bar)
        return self._finished()

    def _loader(self, period: tuple[str, str], stage: Stage, batch_size: int) -> Loader:
        return Loader(
            self.data,
            self.data.windows(period, stage.rollout),
            stage.rollout,
            batch_size,
            self.config.seed + _SEED_OF_STAGE * self.stage,
            self.mean,
            self.std,
            rank=self.ranks.rank,
            world=self.ranks.world,
            workers=self.workers,
            pin=self.ranks.device.type == "cuda",
        )

    def _run_stage(self, stage: Stage, bar: Any) -> None:
        c = self.config
        with (
            self._loader(c.train, stage, stage.batch_size) as loader,
            self._loader(c.validation, stage, self.ranks.world) as checks,
        ):
            self._note_skipped(loader)
            batches = loader.batches(self.place)
            while True:
                self._one_update(stage, loader, batches, bar)
                last = self.place == stage.updates
                stop = (last or self.update % c.validate_every == 0) and self._validate(checks)
                if stop or last:
                    self.stage, self.place = self.stage + 1, 0
                    self.stopper = EarlyStopping(c.patience)
                if stop or last or self.update % c.save_every == 0:
                    self._save()
                if stop or last:
                    return

    def _note_skipped(self, loader: Loader) -> None:
        """Say once per stage how many starts lack a time of their sample."""
        if self.show and loader.windows.skipped:
            tqdm.write(f"{loader.windows.skipped} starts are left out: {loader.windows.why}")

    def _one_update(self, stage: Stage, loader: Loader, batches: Any, bar: Any) -> None:
        began, waited = clock.perf_counter(), loader.waited
        batch: Batch = next(batches)
        waited = loader.waited - waited
        device = self.ranks.device
        size, c = self.network_config.noise_dim, self.config
        stream = TRAINING + 16 * (self.stage + 1)
        members = range(1, c.members + 1)
        noise = noise_of(c.seed, stream, batch.positions, members, stage.rollout, size)
        rate = learning_rate(stage, self.place)
        self.optimiser.set_rate(rate)
        self.optimiser.zero_grad()
        batch = _to(batch, device)
        forcing = None if batch.forcing is None else batch.forcing.transpose(0, 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=c.precision == "bfloat16"):
            loss, channels = self.loss(
                batch.history,
                batch.targets,
                batch.clock,
                forcing,
                None if noise is None else noise.to(device),
                c.members,
                stage.backprop,
            )
        mean_loss, channels = self.ranks.mean(loss.detach()), self.ranks.mean(channels)
        value = float(mean_loss)
        check_finite(value, channels, self.schema, batch.starts, self.update + 1)
        loss.backward()
        norm = float(self.optimiser.clip(c.clip if c.clip is not None else math.inf))
        check_finite(norm, channels, self.schema, batch.starts, self.update + 1)
        self.optimiser.step()
        if self.ema is not None:
            self.ema.update(self.network)
        self.place, self.update = self.place + 1, self.update + 1
        self._log_update(value, channels, rate, norm, clock.perf_counter() - began, waited, stage, bar)

    # ---------------------------------------------------------------------------------------- validation and history

    def _checked_batches(self, loader: Loader) -> Iterator[Batch]:
        """The same samples at every validation: evenly over the period, this rank's share."""
        starts = loader.windows.starts
        count = min(self.config.validation_samples, len(starts))
        places = np.unique(np.linspace(0, len(starts) - 1, count).round().astype(np.int64))
        for place in places[self.ranks.rank :: self.ranks.world]:
            batch = loader.load(starts[[place]])
            yield _to(dataclasses.replace(batch, positions=np.array([place])), self.ranks.device)

    def _validate(self, loader: Loader) -> bool:
        """Scores of the running mean of the weights; keeps the best; whether to stop the stage."""
        c = self.config
        applied = self.ema.applied(self.network) if self.ema is not None else contextlib.nullcontext()
        with applied, torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=c.precision == "bfloat16"):
            batches = self._checked_batches(loader)
            found = validate(self.network, batches, self.area, self.alpha, c.validation_members, c.seed, self.ranks.sum)
            if found.total < self.best or self.best_weights is None:
                self.best = found.total
                self.best_weights = {k: v.detach().cpu().clone() for k, v in self.network.named_parameters()}
                if self.folder is not None and self.ranks.first:
                    self._best_model().save(self.folder.model)
        if self.ranks.first:
            self._log_validation(found)
        return self.stopper.update(found.total)

    def _log_validation(self, found: Validation) -> None:
        lists = {"channels": found.crps, "spread_skill": found.spread_skill, "power_ratio": found.power_ratio}
        line = {"kind": "validation", "update": self.update, "crps": found.total}
        self._log(line | {name: values.tolist() for name, values in lists.items()})
        if self.board is not None:
            self.board.add_scalar("validation/crps", found.total, self.update)

    def _log_update(
        self,
        loss: float,
        channels: torch.Tensor,
        rate: float,
        norm: float,
        seconds: float,
        waited: float,
        stage: Stage,
        bar: Any,
    ) -> None:
        bar.update()
        if not self.ranks.first:
            return
        line: dict[str, Any] = {"kind": "update", "update": self.update, "stage": self.stage, "loss": loss}
        line |= {"learning_rate": rate, "gradient_norm": norm, "seconds": seconds, "waited": waited}
        line["samples"] = stage.batch_size
        if self.update % _CHANNELS_EVERY == 1:
            line["channels"] = channels.tolist()
        self._log(line)
        bar.set_postfix_str(
            f"loss {loss:.4f}, rate {rate:.2g}, {stage.batch_size / seconds:.3g} samples/s", refresh=False
        )
        if self.board is not None:
            self.board.add_scalar("train/loss", loss, self.update)
            self.board.add_scalar("train/learning_rate", rate, self.update)

    def _log(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if self.folder is not None and self.ranks.first:
            self.folder.append(line)

    def _board(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            do = "pip install tensorboard, or leave tensorboard=True out"
            raise ArgumentError(explain("TensorBoard isn't installed", do=do)) from None
        assert self.folder is not None
        return SummaryWriter(str(self.folder.path / "tensorboard")) if self.ranks.first else None

    # ----------------------------------------------------------------------------------------------- save and resume

    def _save(self) -> None:
        if self.folder is None:
            return
        state = {
            "version": _STATE_VERSION,
            "update": self.update,
            "stage": self.stage,
            "place": self.place,
            "best": self.best,
            "best_weights": self.best_weights,
            "network": {k: v.detach().cpu() for k, v in self.network.named_parameters()},
            "optimiser": self.optimiser.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "stopper": self.stopper.state_dict(),
            "mean": torch.from_numpy(self.mean),
            "std": torch.from_numpy(self.std),
        }
        if self.ranks.first:
            self.folder.save(state)
        self.ranks.barrier()

    def _resume(self) -> None:
        assert self.folder is not None
        if not self.folder.has_state():
            self.lines = self.lines[:0]
            if self.ranks.first:
                self.folder.cut(-1)
                self._log({"kind": "schema", "update": 0, "schema": self.schema.to_dict()})
            return
        state = self.folder.load()
        if not (np.array_equal(state["mean"], self.mean) and np.array_equal(state["std"], self.std)):
            raise CheckpointError(
                explain("The data have other statistics than when the run began", do="Resume with the same data")
            )
        with torch.no_grad():
            for name, weight in self.network.named_parameters():
                weight.copy_(state["network"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.stopper.load_state_dict(state["stopper"])
        self.stage, self.place, self.update = state["stage"], state["place"], state["update"]
        self.best, self.best_weights = state["best"], state["best_weights"]
        if self.ranks.first:
            self.folder.cut(self.update)
        self.ranks.barrier()
        self.lines = [line for line in self.lines if line["update"] <= self.update]

    def _best_model(self) -> Model:
        """A model of its own with the network's weights as they are now."""
        about = self.model.provenance | {"validation_crps": self.best, "updates": self.update}
        return Model(self.model.network, self.schema, self.data.grid, self.mean, self.std, self.model.static, about)

    def _finished(self) -> Model:
        if self.board is not None:
            self.board.close()
        if self.best_weights is not None:
            with torch.no_grad():
                for name, weight in self.network.named_parameters():
                    weight.copy_(self.best_weights[name])
        self.network.requires_grad_(False).eval()
        self.network.recompute = False
        self.network.to("cpu")
        if self.folder is not None:
            model = read_model(self.folder.model)
        else:
            model = self._best_model()
        return dataclasses.replace(model, history=history_of(self.lines, self.schema))


def _to(batch: Batch, device: torch.device) -> Batch:
    tensors = {name: getattr(batch, name) for name in ("history", "targets", "forcing", "clock")}
    moved: Any = {n: None if t is None else t.to(device, non_blocking=True) for n, t in tensors.items()}
    return dataclasses.replace(batch, **moved)


def _known_channels(ds: xr.Dataset, config: TrainConfig) -> Schema:
    """All state variables of a Dataset that are known, with the levels on which they have values."""
    variables = {n: v for n, v in known_variables(ds).items() if n not in (*config.forcing, *config.static)}
    if not variables:
        raise ArgumentError(explain("No variable of the Dataset is known", do="Pass variables= in the configuration"))
    # in our own layout a variable is NaN on levels that only others have
    first = standardise(ds, Schema.from_variables(variables)).isel(time=0)
    for name, levels in variables.items():
        if levels is not None:
            empty = first[name].isnull().all([d for d in first[name].dims if d != "level"])
            variables[name] = [level for level in levels if not bool(empty.sel(level=level))]
    return Schema.from_variables(variables, forcing=config.forcing, static=config.static)


def _same_config(before: dict[str, Any], now: dict[str, Any]) -> None:
    now = json.loads(json.dumps(now))
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        name = changed[0]
        raise ArgumentError(
            explain(
                f"The run was begun with another {name}",
                got=str(now[name])[:200],
                expected=str(before.get(name))[:200],
                do="Resume with the configuration it was begun with, or train in another folder",
            )
        )
