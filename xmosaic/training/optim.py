"""Who moves the weights: Muon the hidden matrices, AdamW the rest. What goes along with it is in `schedule`."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..errors import ArgumentError, CheckpointError, explain
from ..variables import close_names, listed
from .config import TrainConfig
from .muon import Muon
from .schedule import EarlyStopping as EarlyStopping
from .schedule import Ema as Ema
from .schedule import check_names
from .schedule import learning_rate as learning_rate
from .shards import assign, group_of, local

# They read features of the data (grid points, positions of the children) or write channels: one side isn't hidden.
_ENDS = ("preprocess.0.*", "*.proj_pos.*", "postprocess.3.*")
# Of fewer rows or columns than this, Muon would make each alike in size, whatever it is for.
_SMALLEST = 8


# -------- who moves what --------


@dataclass(frozen=True)
class Split:
    """Names of the parameters by what moves them; each parameter stands in one of the three.

    Attributes
    ----------
    muon, adam, frozen : tuple of str
    sizes : dict of str to int
        Numbers of each parameter.
    """

    muon: tuple[str, ...]
    adam: tuple[str, ...]
    frozen: tuple[str, ...]
    sizes: Mapping[str, int]

    def __str__(self) -> str:
        total = sum(self.sizes.values())
        lines = [f"{'':<8}{'tensors':>8}{'parameters':>14}{'share':>9}"]
        for label, names in (("Muon", self.muon), ("AdamW", self.adam), ("frozen", self.frozen), ("all", self.sizes)):
            count = sum(self.sizes[name] for name in names)
            lines.append(f"{label:<8}{len(names):>8}{count:>14,}{count / total:>9.2%}")
        return "\n".join(lines)


def split_parameters(network: nn.Module, frozen: Iterable[str] = ()) -> Split:
    """Which parameters Muon moves, which AdamW, and which nothing.

    Muon makes all singular values of an update alike. That fits matrices between hidden features: attention, gates,
    feed-forward, noise, down- and upsampling, and the second layers at both ends of the network. AdamW has the others:

    - the first layer (columns are channels, static fields and clock) and the last (rows are channels), since channels
      differ in how much they matter;
    - the positions of children in down- and upsampling: 12 numbers that are always the same;
    - matrices with a side shorter than 8, such as the directions in the neighbour attention (3 columns);
    - what is no matrix.

    Keys and values of the neighbour attention and the two halves of a feed-forward layer are one matrix each in the
    published files, and are orthogonalised as one.

    Parameters
    ----------
    network : Module
        A `Mosaic`; on the meta device will do.
    frozen : iterable of str
        Patterns (fnmatch) of names that aren't trained, such as ``"encoder_stages.0.*"``.

    Returns
    -------
    Split

    Raises
    ------
    ArgumentError
        A pattern that no parameter matches, or nothing left to train.

    References
    ----------
    Jordan, K. et al. (2024). Muon: an optimizer for hidden layers in neural networks. kellerjordan.github.io/posts/muon
    """
    parameters = dict(network.named_parameters())
    frozen = (frozen,) if isinstance(frozen, str) else tuple(frozen)
    groups: dict[str, list[str]] = {"muon": [], "adam": [], "frozen": []}
    still = _matched(list(parameters), frozen)
    for name, weight in parameters.items():
        hidden = weight.ndim == 2 and min(weight.shape) >= _SMALLEST and not _matches(name, _ENDS)
        groups["frozen" if name in still else "muon" if hidden else "adam"].append(name)
    if not groups["muon"] and not groups["adam"]:
        raise ArgumentError(explain("Nothing is left to train", got=f"frozen={listed(frozen)}", do="Freeze less"))
    sizes = {name: weight.numel() for name, weight in parameters.items()}
    return Split(tuple(groups["muon"]), tuple(groups["adam"]), tuple(groups["frozen"]), sizes)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _matched(names: list[str], patterns: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        some = fnmatch.filter(names, pattern)
        if not some:
            close = close_names(pattern.replace("*", ""), names) or names
            raise ArgumentError(
                explain(
                    f"frozen={pattern!r} matches no parameter", expected=f"patterns of names such as {listed(close)}"
                )
            )
        found.update(some)
    return found


# -------- the optimiser --------


class Optimiser:
    """`Muon` and `torch.optim.AdamW` as one, with a memory that goes by the parameters' names.

    With learning rate η, momentum μ, NS the five Newton–Schulz steps and W of `rows` × `columns`, Muon does

        B ← μ B + (1 − μ) G;  W ← (1 − η λ) W − η √max(1, rows / columns) · NS(μ B + (1 − μ) G)

    The factor is torch's "original": it belongs to rates of Muon's own scale, such as the paper's 0.02, and changes
    hidden features by about as much whatever the width, so that one rate serves all sizes. "match_rms_adamw" belongs to
    AdamW's rates: with 0.02 it would move the paper's matrices by 5 times as much and more. AdamW has the rate
    η · `adam_rate`. Weight decay λ is on matrices only.

    Parameters
    ----------
    network : Module
        The bare one: names must not change with what it is wrapped in. Parameters that are frozen stop asking for
        gradients, the others ask.
    config : TrainConfig
    split : Split
        Of `split_parameters`.
    captured : bool
        Whether Muon's products are one CUDA graph, which spares small networks the wait for launches.

    Notes
    -----
    The memory (8 bytes per number that AdamW moves, 4 per number of Muon's) is there from the start, so that a
    checkpoint has every name at any time.
    """

    def __init__(self, network: nn.Module, config: TrainConfig, split: Split, captured: bool = False) -> None:
        parameters = dict(network.named_parameters())
        for name, weight in parameters.items():
            weight.requires_grad_(name not in split.frozen)
        self._parameters = {name: parameters[name] for name in (*split.muon, *split.adam)}
        self._adam_rate = config.adam_rate
        self._muon = _muon([parameters[n] for n in split.muon], config, captured)
        self._adam = _adam([parameters[n] for n in split.adam], config)
        self._remember(split)
        self.set_rate(config.stages[0].learning_rate)

    def _remember(self, split: Split) -> None:
        """Memory as the optimisers would make it at their first step."""
        self._memory: dict[str, dict[str, torch.Tensor]] = {}
        for name, weight in self._parameters.items():
            if name in split.muon:
                state = {"momentum_buffer": torch.zeros_like(weight)}
            else:
                device = weight.device if weight.is_cuda else "cpu"  # where the fused step counts
                step = torch.zeros((), dtype=torch.float32, device=device)
                state = {"step": step, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
            owner = self._muon if name in split.muon else self._adam
            assert owner is not None
            owner.state[weight] = self._memory[name] = {key: value.detach() for key, value in state.items()}

    def set_rate(self, rate: float) -> None:
        """Muon's learning rate; AdamW's follows.

        Parameters
        ----------
        rate : float
        """
        for optimiser, own in ((self._muon, rate), (self._adam, rate * self._adam_rate)):
            for group in () if optimiser is None else optimiser.param_groups:
                group["lr"] = own

    def step(self) -> None:
        """Move the weights by their gradients; those without one stay."""
        for optimiser in (self._muon, self._adam):
            if optimiser is not None:
                optimiser.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self._parameters.values():
            weight.grad = None

    def clip(self, max_norm: float | None) -> torch.Tensor:
        """Scale all gradients together so that their norm is `max_norm` at most.

        Parameters
        ----------
        max_norm : float, optional
            None or infinity: nothing is scaled.

        Returns
        -------
        Tensor, ()
            The norm before; on the device, so that nothing waits for it.
        """
        weights = [w for w in self._parameters.values() if w.grad is not None]
        gradients = [local(w.grad) for w in weights if w.grad is not None]
        norm, group = get_total_norm(gradients), group_of(weights)
        limit = math.inf if max_norm is None else max_norm
        if group is None:
            if limit < math.inf:
                clip_grads_with_norm_(weights, limit, norm)
            return norm
        # each rank has a part of the sum; squares of what fits into float32 need float64
        square = norm.double().square()
        dist.all_reduce(square, group=group)
        norm = square.sqrt().to(norm.dtype)
        for gradient in gradients if limit < math.inf else ():
            gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def state_dict(self) -> dict[str, dict[str, torch.Tensor]]:
        """Memory of each trained parameter by name; the tensors themselves, not copies.

        Returns
        -------
        dict
            Parameter's name → ``momentum_buffer`` of Muon's; ``step``, ``exp_avg``, ``exp_avg_sq`` of AdamW's.
        """
        return {name: dict(memory) for name, memory in self._memory.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, torch.Tensor]], strict: bool = True) -> None:
        """Take over a memory, by the parameters' names.

        Parameters
        ----------
        state : mapping
            Of `state_dict`.
        strict : bool
            False: parameters that are unknown there, or have another shape or another optimiser now, keep the memory
            they have.

        Raises
        ------
        CheckpointError
            If names, kinds or shapes differ, unless `strict` is False.
        """
        if strict:
            check_names("memory of the optimiser", state, self._memory)
        for name, memory in self._memory.items():
            given = state.get(name, {})
            fits = {k: v.shape for k, v in given.items()} == {k: v.shape for k, v in memory.items()}
            if strict and not fits:
                got, expected = _shapes(given), _shapes(memory)
                raise CheckpointError(explain(f"The memory of {name!r} doesn't fit", got=got, expected=expected))
            for key in memory if fits else ():
                assign(memory[key], given[key])


def _muon(weights: list[nn.Parameter], config: TrainConfig, captured: bool) -> torch.optim.Optimizer | None:
    return Muon(weights, config.weight_decay, config.momentum, captured) if weights else None


def _adam(weights: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer | None:
    matrices, others = [w for w in weights if w.ndim >= 2], [w for w in weights if w.ndim < 2]
    pairs = ((matrices, config.weight_decay), (others, 0.0))
    groups = [{"params": some, "weight_decay": decay} for some, decay in pairs if some]
    if not groups:
        return None
    # None leaves the choice of foreach to torch
    return torch.optim.AdamW(groups, betas=config.betas, fused=True if all(w.is_cuda for w in weights) else None)


def _shapes(memory: Mapping[str, torch.Tensor]) -> str:
    return ", ".join(f"{key} {tuple(value.shape)}" for key, value in memory.items()) or "nothing"
