"""`train`: the loop over stages and updates, its checkpoints and its history."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import os
import time as clock
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from tqdm.auto import tqdm

from ..checkpoint import Model, read_model
from ..errors import ArgumentError, CheckpointError, explain
from ..graph import Captured, Inputs
from ..model import Mosaic
from ..options import get_option
from .adapt import adapt_weights, init_model
from .bands import Bands
from .config import Stage, TrainConfig
from .folder import RunFolder
from .history import Journal, history_of
from .loader import Batch, Loader
from .loss import channel_weights, latitude_weights
from .normalise import statistics
from .optim import Optimiser, split_parameters
from .ranks import Parallel, Ranks
from .samples import TrainingData
from .saving import States
from .scales import by_change, sampled
from .schedule import EarlyStopping, Ema, learning_rate
from .setup import channels_of, datasets_of, network_of, same_config
from .shards import copied, whole
from .step import TRAINING, RolloutLoss, check_finite, noise_of
from .validate import validate

_SEED_OF_STAGE = 1_000_003


def train(
    ds: xr.Dataset | Sequence[xr.Dataset],
    config: TrainConfig,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    init: str | os.PathLike[str] | Model | None = None,
    device: Any = None,
    parallel: Parallel = "ddp",
    member_ranks: int | None = None,
    workers: int = 4,
    loader: Callable[..., Any] | None = None,
    cuda_graph: bool | None = None,
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
        Weights to begin with; channels are matched by name, those that are new begin afresh. They are validated before
        the first update, and come back, with a warning, from a run of one stage that makes them no better.
    device : str or torch.device, optional
        By default the GPU if there is one. Under ``torchrun`` each rank takes its own.
    parallel : {"ddp", "fsdp"}
        Of several ranks: each has all weights (DDP), or weights, gradients and the optimiser's memory are cut into
        shards (FSDP2), for networks that one GPU can't hold. The result is the same to rounding.
    member_ranks : int, optional
        How many ranks share the members of one sample; by default as few as possible: 1 where the samples of a batch
        can be shared equally by all ranks. The loss is over all members either way.
    workers : int
        Threads that read data ahead.
    loader : callable, optional
        Makes what hands out the samples, with the arguments of `xmosaic.training.loader.Loader`, by default that: for
        data that stay on the GPU, or samples that are changed on the way. What it gives must depend on seed and place
        in the order alone, or a resumed run is another.
    cuda_graph : bool, optional
        Whether work is recorded once and replayed, which spares small networks the wait for launches; by default
        wherever it can be: on one GPU forward and backward pass and Muon's products, on several with DDP the latter.
    progress : bool, optional
        Whether to show a progress bar; by default as `xmosaic.set_options` says.
    tensorboard : bool
        Whether to write losses for TensorBoard too, to ``out/tensorboard``.

    Returns
    -------
    Model
        Best of the last stage on the validation period; its ``history`` is a labelled Dataset, and
        ``provenance["updates"]`` says after which update it was best.

    Raises
    ------
    DatasetError
        Where the data can't be used: gaps longer than a sample, NaN, a constant channel.
    ArgumentError, CheckpointError, StoreError
        For what the texts say.

    Warns
    -----
    UserWarning
        Where training made the weights of `init` no better.

    Examples
    --------
    >>> import tempfile
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> config = xmosaic.recipes.small(
    ...     0.01, train=("2012-04-10", "2012-05-09"), validation=("2012-05-10", "2012-05-19"),
    ...     variables={"2m_temperature": None}, nside=4, updates=2, validation_samples=1,
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model = xmosaic.train(ds, config, out=folder + "/run", progress=False)
    >>> [channel.name for channel in model.schema.state], model.history.sizes["update"]
    (['2m_temperature'], 2)
    """
    with Ranks.find(device, parallel) as ranks, contextlib.ExitStack() as held:
        return _Run(
            ds,
            config,
            held=held,
            out=out,
            resume=resume,
            init=init,
            ranks=ranks,
            member_ranks=member_ranks,
            workers=workers,
            loader=loader or Loader,
            cuda_graph=cuda_graph,
            progress=progress,
            tensorboard=tensorboard,
        ).go()


@dataclasses.dataclass(frozen=True, eq=False)
class _Samples:
    """What one update works on."""

    starts: pd.DatetimeIndex
    inputs: Inputs
    waited: float


class _Run:
    """One run of training."""

    def __init__(
        self,
        ds: Any,
        config: TrainConfig,
        *,
        held: contextlib.ExitStack,
        out: Any,
        resume: bool,
        init: Any,
        ranks: Ranks,
        member_ranks: int | None,
        workers: int,
        loader: Callable[..., Any],
        cuda_graph: bool | None,
        progress: bool | None,
        tensorboard: bool,
    ) -> None:
        if not isinstance(config, TrainConfig):
            raise ArgumentError(explain("config is no TrainConfig", got=type(config).__name__, expected="a recipe"))
        self.config, self.ranks, self.workers, self.loader = config, ranks, workers, loader
        self.graphed = ranks.can_capture(cuda_graph)
        # of all stages now: an error shall not come after the first ones
        self.layouts = [ranks.layout(config, number, member_ranks) for number in range(len(config.stages))]
        self.show = (get_option("progress") if progress is None else progress) and ranks.first
        self.fine_tunes = init is not None
        if not (out is None or isinstance(out, str | os.PathLike)):
            raise ArgumentError(explain("out can't be used", got=repr(out), expected="the path of a folder"))
        if not callable(loader):
            raise ArgumentError(explain("loader can't be used", got=repr(loader), expected="what makes a loader"))
        self.folder = None if out is None else RunFolder(out)
        if (resume or tensorboard) and self.folder is None:
            raise ArgumentError(explain("resume=True and tensorboard=True need a folder", do="Pass out="))
        self.datasets = datasets_of(ds)
        start = None if init is None else init_model(init)
        self.schema = channels_of(self.datasets[0], config, start)
        self.network_config = network_of(config, self.schema, start)
        step = pd.Timedelta(hours=self.network_config.step_hours)
        self.data = TrainingData(self.datasets, self.schema, step, self.network_config.num_history)
        for stage in config.stages:
            for period in (config.train, config.validation):
                self.data.windows(period, stage.rollout)
        self._open(resume, held)
        self.mean, self.std = self._statistics(start)
        self.model = self._model(start)
        self._prepare(cuda_graph)
        lines = self.folder.lines() if self.folder and resume else []
        self.journal = Journal(self.folder, ranks.first, lines, tensorboard)
        self.stage = self.place = self.update = 0
        self.best: float = math.inf
        self.best_update = 0
        self.best_weights: dict[str, torch.Tensor] | None = None
        if resume:
            self._resume()
        else:
            self._begin_history()

    # ------------------------------------------------------------------------------------------------ what is trained

    def _open(self, resume: bool, held: contextlib.ExitStack) -> None:
        if self.folder is None:
            return
        folder = self.folder
        if resume:
            same_config(folder.config(), self.config.to_dict())
        held.callback(folder.release)
        self.ranks.once(folder.hold)
        self.ranks.once(folder.tidy if resume else lambda: folder.begin(self.config.to_dict()))

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
        static = self.data.static if start is None else self._static(start)
        neighbors = None
        if start is not None and start.grid == grid and start.config.num_neighbors == self.network_config.num_neighbors:
            tables = (start.network.interp_to_hp.neighbors, start.network.interp_to_ll.neighbors)
            neighbors = (tables[0].numpy(force=True), tables[1].numpy(force=True))
        network = Mosaic(self.network_config, np.array(grid.longitude), np.array(grid.latitude), static, neighbors)
        network.init_weights(torch.Generator().manual_seed(self.config.seed))
        if start is not None:
            adapt_weights(start, network, self.schema)
        return Model(network, self.schema, grid, self.mean, self.std, static, self._provenance(start))

    def _static(self, start: Model) -> np.ndarray | None:
        """Fields of the data; on the same grid those that the weights to begin with know are theirs, by name."""
        if self.data.static is None or start.static is None or start.grid != self.data.grid:
            return self.data.static
        static, known = self.data.static.copy(), {c.name: i for i, c in enumerate(start.schema.static)}
        for i, channel in enumerate(self.schema.static):
            if channel.name in known:
                static[..., i] = start.static[..., known[channel.name]]
        return static

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

    def _prepare(self, cuda_graph: bool | None) -> None:
        c, device = self.config, self.ranks.device
        # with weights in shards the model keeps a network of its own, whole and on the CPU, to be saved and returned
        sharded = self.ranks.sharded
        self.network = copy.deepcopy(self.model.network) if sharded else self.model.network.to(device)
        self.network.recompute = c.checkpoint_activations
        alpha, bands = self._scales()
        weights = latitude_weights(self.data.grid), alpha
        area, alpha = (torch.as_tensor(w, dtype=torch.float32, device=device) for w in weights)
        self.split = split_parameters(self.network, c.frozen)
        for name, weight in self.network.named_parameters():
            weight.requires_grad_(name not in set(self.split.frozen))
        self.module = RolloutLoss(self.network, area, alpha, c.loss, bands, c.band_weight)
        self.loss = self.ranks.wrap(self.module, c.precision)
        # where ranks have all weights each makes Muon's products for itself, and nothing stands against recording them
        captured = self.graphed or (cuda_graph is not False and device.type == "cuda" and not sharded)
        self.optimiser = Optimiser(self.network, c, self.split, captured)
        self.ema = None if c.ema is None else Ema(self.network, c.ema)
        self.stopper = EarlyStopping(c.patience)
        trained = list(self.network.parameters())
        self.gradients = Captured(self._gradients, trained) if self.graphed else self._gradients
        self.states = None
        if self.folder is not None:
            self.states = States(self.folder, self.ranks, self.network, self.optimiser, self.ema)

    def _scales(self) -> tuple[Any, Bands | None]:
        """Weights of the channels, and scores of single scales, each over its size in some of the training period."""
        c, data = self.config, self.data
        alpha, bands = channel_weights(self.schema, c.channel_weights), None
        moving = c.error_scale == "change"
        if not (moving or c.bands):
            return alpha, None
        states = self.ranks.once(lambda: sampled(data, c.train, self.mean, self.std, moving))
        if moving:
            alpha = by_change(alpha, states, data.grid, c.loss)
        if c.bands:
            bands = Bands(data.grid, c.bands, c.loss)
            bands.measure(states)
            bands = bands.to(self.ranks.device)
        return alpha, bands

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

    def _loader(self, period: tuple[str, str], stage: Stage, batch_size: int, part: int, parts: int) -> Loader:
        return self.loader(
            self.data,
            self.data.windows(period, stage.rollout),
            stage.rollout,
            batch_size,
            self.config.seed + _SEED_OF_STAGE * self.stage,
            self.mean,
            self.std,
            rank=part,
            world=parts,
            workers=self.workers,
            pin=self.ranks.device.type == "cuda",
        )

    def _run_stage(self, stage: Stage, bar: Any) -> None:
        c, layout = self.config, self.layouts[self.stage]
        self.module.all_members = self.ranks.gatherer(layout)
        if isinstance(self.gradients, Captured):
            self.gradients.forget()
        with (
            self._loader(c.train, stage, stage.batch_size, layout.sample, layout.samples) as loader,
            self._loader(c.validation, stage, 1, 0, 1) as checks,
        ):
            self._note_skipped(loader, checks)
            if self.fine_tunes and self.update == 0:
                self._validate(checks)
            elif self.place == 0:
                for _ in self._checked_batches(checks):
                    pass  # what can't be used is said now, and not after the updates up to the first validation
            samples = self._samples(loader, stage)
            ready: _Samples | None = next(samples)
            while ready is not None:
                ready = self._one_update(stage, ready, samples, bar)
                last = self.place == stage.updates
                stop = (last or self.update % c.validate_every == 0) and self._validate(checks)
                if stop or last:
                    self.stage, self.place = self.stage + 1, 0
                    self.stopper = EarlyStopping(c.patience)
                    if self.stage < len(c.stages):
                        self.best = math.inf  # scores of longer rollouts are larger: each stage has a best of its own
                if stop or last or self.update % c.save_every == 0:
                    self._save()
                if stop or last:
                    return

    def _note_skipped(self, *loaders: Loader) -> None:
        """Say once per stage how many starts lack a time of their sample; the history knows it too."""
        for name, loader in zip(("training", "validation"), loaders, strict=True):
            windows = loader.windows
            if not windows.skipped:
                continue
            if self.show:
                tqdm.write(f"{windows.skipped} starts of {name} are left out: {windows.why}")
            if self.place == 0:
                line = {"kind": "left out", "update": self.update, "stage": self.stage, "period": name}
                self.journal.add(line | {"starts": windows.skipped, "why": windows.why})

    def _samples(self, loader: Loader, stage: Stage) -> Iterator[_Samples]:
        """Batches of the rest of a stage."""
        batches = loader.batches(self.place)
        for _ in range(self.place, stage.updates):
            before = loader.waited
            batch: Batch = self.ranks.each(lambda: next(batches))
            yield _Samples(batch.starts, self._inputs(batch), loader.waited - before)

    def _one_update(self, stage: Stage, samples: _Samples, following: Iterator[_Samples], bar: Any) -> _Samples | None:
        """Move the weights; what comes next is made ready while the device works."""
        began = clock.perf_counter()
        rate = learning_rate(stage, self.place)
        self.optimiser.set_rate(rate)
        self.optimiser.zero_grad()
        loss, channels = self.gradients(samples.inputs)
        channels = self.ranks.mean(channels)
        norm = self.optimiser.clip(self.config.clip)
        self.optimiser.step()
        if self.ema is not None:
            self.ema.update(self.network)
        seen = torch.stack([self.ranks.mean(loss), norm.to(loss.dtype)])
        ready = next(following, None)
        # the only look at the device: what comes out not finite is never written, for the run ends here
        value, size = seen.tolist()
        for number in (value, size):
            check_finite(number, channels, self.schema, samples.starts, self.update + 1)
        self.place, self.update = self.place + 1, self.update + 1
        values = {"stage": self.stage, "loss": value, "learning_rate": rate, "gradient_norm": size}
        values |= {"seconds": clock.perf_counter() - began, "waited": samples.waited, "samples": stage.batch_size}
        self.journal.update(self.update, values, channels, bar)
        return ready

    def _inputs(self, batch: Batch) -> dict[str, torch.Tensor | None]:
        """What the loss is computed from, on the device."""
        stream, members = TRAINING + 16 * (self.stage + 1), self.layouts[self.stage].own(self.config.members)
        rollout, size = self.config.stages[self.stage].rollout, self.network_config.noise_dim
        noise = noise_of(self.config.seed, stream, batch.positions, members, rollout, size)
        batch, device = _to(batch, self.ranks.device), self.ranks.device
        return {
            "history": batch.history,
            "targets": batch.targets,
            "clock": batch.clock,
            "forcing": None if batch.forcing is None else batch.forcing.transpose(0, 1),
            "noise": None if noise is None else noise.to(device),
        }

    def _gradients(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and loss by channel; gradients are added to the weights'."""
        c, stage = self.config, self.config.stages[self.stage]
        members = len(self.layouts[self.stage].own(c.members))
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=c.precision == "bfloat16"):
            loss, channels = self.loss(**inputs, members=members, backprop=stage.backprop)
        loss.backward()
        return loss.detach(), channels

    # ---------------------------------------------------------------------------------------- validation and history

    def _checked_batches(self, loader: Loader) -> Iterator[tuple[Batch, bool]]:
        """The same samples at every validation: evenly over the period, this rank's share.

        Each rank has as many, for with weights in shards all take part in each; what is too much doesn't count.
        """
        starts, world = loader.windows.starts, self.ranks.world
        count = min(self.config.validation_samples, len(starts))
        places = np.unique(np.linspace(0, len(starts) - 1, count).round().astype(np.int64))
        for first in range(0, len(places), world):
            mine = first + self.ranks.rank
            place = places[min(mine, len(places) - 1)]
            batch = self.ranks.each(functools.partial(loader.load, starts[[place]]))
            batch = dataclasses.replace(batch, positions=np.array([place]))
            yield _to(batch, self.ranks.device), mine < len(places)

    def _validate(self, loader: Loader) -> bool:
        """Scores of the running mean of the weights; keeps the best; whether to stop the stage."""
        c = self.config
        applied = self.ema.applied(self.network) if self.ema is not None else contextlib.nullcontext()
        with applied, torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=c.precision == "bfloat16"):
            batches = self._checked_batches(loader)
            found = validate(self.module, batches, c.validation_members, c.seed, self.ranks.sum)
            if found.total < self.best or self.best_weights is None:
                self.best, self.best_update = found.total, self.update
                self.best_weights = copied(self.network)
                if self.folder is not None:
                    self._gather(dict(self.network.named_parameters()))
                    folder = self.folder
                    self.ranks.once(lambda: folder.save_model(self._best_model()))
        self.journal.validation(self.update, found)
        return self.stopper.update(found.total)

    # ----------------------------------------------------------------------------------------------- save and resume

    def _begin_history(self) -> None:
        self.journal.add({"kind": "schema", "update": 0, "schema": self.schema.to_dict()})

    def _save(self) -> None:
        if self.states is None:
            return
        plain: dict[str, Any] = {"update": self.update, "stage": self.stage, "place": self.place, "best": self.best}
        plain |= {
            "best_update": self.best_update,
            "stopper": self.stopper.state_dict(),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
        }
        self.states.save(plain, self.best_weights)

    def _resume(self) -> None:
        assert self.folder is not None and self.states is not None
        journal, folder = self.journal, self.folder
        if not self.ranks.once(folder.has_state):
            journal.lines = []
            self.ranks.once(lambda: folder.cut(-1))
            self._begin_history()
            return
        state, self.best_weights = self.states.load()
        if not all(np.array_equal(state[name], getattr(self, name)) for name in ("mean", "std")):
            raise CheckpointError(
                explain(
                    "The data have other statistics than when the run began",
                    do="Resume with the same data, and the same init= if it had one",
                )
            )
        self.stopper.load_state_dict(state["stopper"])
        self.stage, self.place, self.update = (state[n] for n in ("stage", "place", "update"))
        self.best, self.best_update = state["best"], state.get("best_update", state["update"])
        self.ranks.once(lambda: folder.cut(self.update))
        journal.lines = [line for line in journal.lines if line["update"] <= self.update]

    def _gather(self, weights: dict[str, torch.Tensor]) -> None:
        """Put weights together in the model that is saved or returned; every rank takes part."""
        if not self.ranks.sharded:
            return
        for name, weight in self.model.network.named_parameters():
            weight.detach().copy_(whole(weights[name]))

    def _best_model(self) -> Model:
        """A model of its own with the network's weights as they are now, or as they were gathered."""
        about = self.model.provenance | {"validation_crps": self.best, "updates": self.best_update}
        if self.best_update == 0:
            period = " … ".join(self.config.train)
            about["title"] = f"{about['init']} as it was: training on {period} made it no better"
        return Model(self.model.network, self.schema, self.data.grid, self.mean, self.std, self.model.static, about)

    def _finished(self) -> Model:
        self.journal.close()
        if self.best_update == 0 and self.ranks.first:
            text = "No update made the weights of init= better on the validation period: they come back as they were."
            warnings.warn(text, UserWarning, stacklevel=4)
        network = self.model.network
        if self.folder is not None:
            model = read_model(self.folder.model)
        else:
            if self.best_weights is not None:
                self._gather(self.best_weights)
                for name, weight in () if self.ranks.sharded else network.named_parameters():
                    weight.detach().copy_(self.best_weights[name])
            network.requires_grad_(False).eval().to("cpu")
            network.recompute = False
            model = self._best_model()
        return dataclasses.replace(model, history=history_of(self.journal.lines, self.schema))


def _to(batch: Batch, device: torch.device) -> Batch:
    tensors = {name: getattr(batch, name) for name in ("history", "targets", "forcing", "clock")}
    moved: Any = {n: None if t is None else t.to(device, non_blocking=True) for n, t in tensors.items()}
    return dataclasses.replace(batch, **moved)
