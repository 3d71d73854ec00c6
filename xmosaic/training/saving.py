"""All that a run needs to go on where it was: written and read, in one file or in shards."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .folder import RunFolder
from .optim import Optimiser
from .ranks import Ranks
from .schedule import Ema
from .shards import assign, copied

_STATE_VERSION = 1
_TENSORS = ("network", "optimiser", "ema", "best_weights")


class States:
    """The states of a run: what changes in it, and the folder that keeps it.

    With weights on every rank the first one writes a file. With weights in shards every rank writes its own, and any
    number of ranks reads what it needs of them. Either kind can be resumed from either way.

    Parameters
    ----------
    folder : RunFolder
    ranks : Ranks
    network : Module
    optimiser : Optimiser
    ema : Ema, optional
    """

    def __init__(
        self, folder: RunFolder, ranks: Ranks, network: nn.Module, optimiser: Optimiser, ema: Ema | None
    ) -> None:
        self.folder, self.ranks = folder, ranks
        self.network, self.optimiser, self.ema = network, optimiser, ema

    def save(self, plain: dict[str, Any], best: dict[str, torch.Tensor] | None) -> None:
        """Write a state; every rank takes part.

        Parameters
        ----------
        plain : dict
            Numbers and lists; ``update`` is among them.
        best : dict of str to Tensor, optional
            Best weights so far.
        """
        plain = {"version": _STATE_VERSION} | plain
        if self.ranks.sharded:
            plain |= {"has_best": best is not None, "ema_updates": None if self.ema is None else self.ema.updates}
            self.folder.save_shards(plain, self._tensors(best), self.ranks)
        else:
            self.ranks.once(lambda: self.folder.save(plain | self._whole(best)))

    def load(self) -> tuple[dict[str, Any], dict[str, torch.Tensor] | None]:
        """Take over the last state that is whole; every rank takes part.

        Returns
        -------
        plain, best
            As saved.
        """
        path = self.ranks.once(self.folder.last)
        return self._from_shards(path) if path.is_dir() else self._from_file(path)

    def _from_shards(self, path: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor] | None]:
        plain = self.folder.load_plain(path)
        best = copied(self.network) if plain["has_best"] else None
        self.folder.load_shards(path, self._tensors(best), self.ranks)
        if self.ema is not None:
            self.ema.updates = int(plain["ema_updates"])
        return plain, best

    def _from_file(self, path: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor] | None]:
        state = self.ranks.each(lambda: self.folder.load(path))
        for name, weight in self.network.named_parameters():
            assign(weight, state["network"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        # copies: what was read is only mapped from the file, which will go
        best = None if state["best_weights"] is None else copied(self.network)
        for name, kept in (best or {}).items():
            assign(kept, state["best_weights"][name])
        return {k: v for k, v in state.items() if k not in _TENSORS}, best

    def _tensors(self, best: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """Everything by a name of its own, the tensors themselves."""
        found = {f"network/{name}": weight.detach() for name, weight in self.network.named_parameters()}
        for name, memory in self.optimiser.state_dict().items():
            found |= {f"optimiser/{name}/{key}": value for key, value in memory.items()}
        found |= {f"ema/{k}": v for k, v in (self.ema.state_dict()["mean"] if self.ema is not None else {}).items()}
        return found | {f"best/{name}": weight for name, weight in (best or {}).items()}

    def _whole(self, best: dict[str, torch.Tensor] | None) -> dict[str, Any]:
        return {
            "best_weights": best,
            "network": {k: v.detach().cpu() for k, v in self.network.named_parameters()},
            "optimiser": self.optimiser.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
        }
