"""Errors of this network against a fixture of known outputs: ``python tests/parity.py PATH/NAME``.

A fixture is NAME.json (configuration), NAME.pt (weights in the published format) and NAME.npz (inputs and outputs).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xmosaic.checkpoint import load_published_weights
from xmosaic.model import Mosaic, MosaicConfig, StageConfig

TOLERANCE = 1e-5


def read_config(path: Path) -> tuple[MosaicConfig, int]:
    """Configuration of a fixture, and its number of rollout steps."""
    raw = json.loads(path.with_suffix(".json").read_text())
    config = MosaicConfig(
        stages=tuple(_stage(s) for s in raw["stages"]),
        bottleneck=_stage(raw["bottleneck"]),
        num_variables=raw["num_variables"],
        num_history=raw["num_history_steps"],
        num_neighbors=raw["k_neighbors"],
        step_hours=6 * raw["step_stride"],
        grouping="strided",
        clock="release",
    )
    return config, raw["steps"]


def _stage(raw: dict[str, Any]) -> StageConfig:
    return StageConfig(
        nside=raw["nside"],
        dim=raw["dim"],
        num_heads=raw["num_heads"],
        num_kv_heads=raw["num_heads"] // raw["gqa_ratio"],
        local_size=raw["block_attn_size"],
        block_size=raw["sparse_block_size"],
        block_count=raw["sparse_block_count"],
        encoder_depth=raw.get("encoder_depth", raw.get("depth")),
        decoder_depth=raw.get("decoder_depth", 0),
        mlp_ratio=raw["mlp_ratio"],
    )


def load_fixture(path: Path) -> tuple[Mosaic, dict[str, np.ndarray], int]:
    """Network with the fixture's weights, its arrays, and the number of rollout steps."""
    config, steps = read_config(path)
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
        arrays = dict(file)
    config = dataclasses.replace(config, num_static=arrays["static"].shape[-1])
    weights, neighbors = load_published_weights(path.with_suffix(".pt"))
    network = Mosaic(config, arrays["longitude"], arrays["latitude"], arrays["static"], neighbors=neighbors)
    network.load_state_dict(weights, strict=True)
    return network.eval(), arrays, steps


@torch.inference_mode()
def errors(path: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Largest error over largest magnitude, for every activation, one step and the rollout."""
    network, arrays, steps = load_fixture(path)
    network = network.to(device, dtype)
    t = {k: torch.from_numpy(v).to(device, dtype) for k, v in arrays.items() if v.dtype.kind == "f"}
    result: dict[str, float] = {}
    hooks = [_compare(network, k.removeprefix("act/model."), v, result) for k, v in t.items() if k.startswith("act/")]
    members = t["y"].shape[1]
    x = ((t["x"] - t["state_mean"]) / t["state_std"]).unsqueeze(1).expand(-1, members, *t["x"].shape[1:])
    y = network(x, t["day_year"], t["eps"].view(-1, members, t["eps"].shape[-1]))
    result["one step"] = relative_error(y, t["y"])
    for hook in hooks:
        hook.remove()

    history, clock, states = x[:1], t["day_year"][:1], []
    for step in range(steps):
        state = network(history, clock, t["eps_rollout"][step].unsqueeze(0))
        states.append(state * t["state_std"] + t["state_mean"])
        history = torch.cat([history[:, :, 1:], state.unsqueeze(2)], dim=2)
        clock = clock + t["day_year_delta"]
    scale = t["state_std"]
    result["rollout"] = relative_error(
        torch.stack(states, dim=2) / scale, t["rollout"] / scale, offset=t["state_mean"] / scale
    )
    return result


def relative_error(got: torch.Tensor, expected: torch.Tensor, offset: torch.Tensor | float = 0.0) -> float:
    """max |got − expected| / max |expected − offset|."""
    return float((got - expected).abs().max() / (expected - offset).abs().max())


def _compare(network: Mosaic, name: str, expected: torch.Tensor, result: dict[str, float]) -> Any:
    def hook(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        # of a stage: features, and what is still to be added
        output = output if isinstance(output, torch.Tensor) else sum(t for t in output if t is not None)
        result[name] = relative_error(output.transpose(0, 1), expected)

    return network.get_submodule(name).register_forward_hook(hook)


def main() -> int:
    """Print the errors; exit status 1 if one is above the tolerance."""
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    found = errors(Path(sys.argv[1]), *sys.argv[2:3])
    for name, error in found.items():
        print(f"{name:50s} {error:.2e} {'' if error <= TOLERANCE else f'> {TOLERANCE:.0e}'}")
    return int(max(found.values()) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
