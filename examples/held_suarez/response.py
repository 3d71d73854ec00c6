"""Response of the attention to each wavenumber, from its linearisation: ``python response.py [MODEL] [--out FOLDER]``.

At real states of the bundled sample, each layer of attention on the finest mesh is linearised about its own input
(`torch.func.jvp`, float64, the reference operations), as trained and with the same weights over blocks that don't
follow the mesh. What it answers to spherical harmonics of one degree is split into that degree, larger and smaller
scales. Writes response.nc to FOLDER and the picture of docs/benchmark.md; needs no GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from matplotlib.figure import Figure
from report import KEPT, PICTURES
from scoring import ENGINE
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

import xmosaic
from xmosaic.model import BLOCK_ORDERS, BlockSparseAttention, MosaicConfig
from xmosaic.state import State
from xmosaic.steps import clock_at, member_noise

TITLES = {"nested": "blocks of the mesh", "rows": "of latitude rows", "shuffled": "of points from anywhere"}
ALL = "all"  # the branches' sum: what the layer does
SEED = 0


# ------------------------------------------------------------------------------------------------ harmonics on the mesh


@functools.lru_cache(maxsize=2)
def harmonics(nside: int) -> torch.Tensor:
    """Real spherical harmonics of degree 0 to 3·nside − 1 on the nested mesh, orthonormal over its cells.

    Columns l² to (l + 1)² are degree l. Sampled harmonics are orthogonal only nearly; here each degree is freed of the
    larger scales', so that powers of degrees add up and a layer that did nothing would mix none. At nside 16 that
    takes less than 0.01 % of a harmonic's power up to degree 32, 0.3 % at 40 and 11 % at 47.

    Returns
    -------
    Tensor, (cell, coefficient), float64
    """
    import healpy

    cells, largest = 12 * nside**2, 3 * nside - 1
    places = healpy.nest2ring(nside, np.arange(cells))
    columns = []
    for degree, order in ((d, o) for d in range(largest + 1) for o in range(-d, d + 1)):
        alm = np.zeros(healpy.Alm.getsize(largest), complex)
        alm[healpy.Alm.getidx(largest, degree, abs(order))] = 1j if order < 0 else 1
        columns.append(healpy.alm2map(alm, nside, lmax=largest, pol=False)[places])
    return torch.from_numpy(np.linalg.qr(np.stack(columns, 1))[0])


def wave(basis: torch.Tensor, degree: int, features: int, draw: np.random.Generator) -> torch.Tensor:
    """A random field of one degree, of its own in each feature; power 1 in all, (cell, feature)."""
    weights = torch.from_numpy(draw.standard_normal((2 * degree + 1, features)))
    return basis[:, degree**2 : (degree + 1) ** 2] @ (weights / weights.norm())


def split(basis: torch.Tensor, degree: int, response: torch.Tensor) -> torch.Tensor:
    """Power of (…, cell, feature) at a degree, at larger and at smaller scales, (…, 3); what the mesh holds beyond
    the last degree counts as smaller."""
    found = torch.einsum("cl,...cf->...lf", basis[:, : (degree + 1) ** 2], response).square().sum(-1)
    same, larger = found[..., degree**2 :].sum(-1), found[..., : degree**2].sum(-1)
    return torch.stack([same, larger, response.square().sum((-2, -1)) - same - larger], -1)


# ------------------------------------------------------------------------------------------------------------- layers


def layers(network: xmosaic.model.Mosaic) -> dict[str, BlockSparseAttention]:
    """Attention on the finest mesh by name, on the way in and on the way out."""
    ways = {"encoder": network.encoder_stages[0], "decoder": network.decoder_stages[-1]}
    return {f"{way} {i}": b.attention for way, stage in ways.items() for i, b in enumerate(stage.blocks, 1)}


def reordered(attention: BlockSparseAttention, config: MosaicConfig, order: str) -> BlockSparseAttention:
    """The same weights over blocks in another order, float64."""
    made = BlockSparseAttention(dataclasses.replace(config, block_order=order), attention.stage)
    made.load_state_dict(attention.state_dict())
    return made.double().requires_grad_(False)


def inputs(model: xmosaic.Model, ds: xr.Dataset, times: pd.DatetimeIndex) -> dict[str, torch.Tensor]:
    """What each layer gets at real states, (state, cell, dim), float64; member 1 of seed 0."""
    network, state, seen = model.network.double().eval(), State(ds, model, times), {}
    network.impl = "reference"
    noise = np.concatenate([member_noise(SEED, t, [0], 0, model.config.noise_dim) for t in state.starts])
    history = np.stack([state.history(t) for t in state.starts])[:, None]
    clock = np.array([clock_at(model, t, 0) for t in state.starts])
    hooks = [
        layer.register_forward_pre_hook(functools.partial(lambda name, _, args: seen.update({name: args[0]}), name))
        for name, layer in layers(network).items()
    ]
    with torch.no_grad():
        network(*(torch.from_numpy(np.asarray(a, np.float64)) for a in (history, clock, noise[:, None])))
    for hook in hooks:
        hook.remove()
    return seen


# -------------------------------------------------------------------------------------------------------- measurement


def respond(
    parts: Callable, x: torch.Tensor, degrees: list[int], seed: int, basis: torch.Tensor
) -> Iterator[np.ndarray]:
    """Powers of the linear response for each degree, (branch and their sum, same | larger | smaller).

    `parts` maps (1, cell, feature) to (branch, 1, cell, feature). The blocks that are selected stay as they are.
    """
    for degree in degrees:
        change = wave(basis, degree, x.shape[-1], np.random.default_rng([seed, degree]))
        # the fused attention of CPUs has no forward derivative
        with sdpa_kernel(SDPBackend.MATH):
            response = torch.func.jvp(parts, (x,), (change[None],))[1][:, 0]
        yield split(basis, degree, torch.cat([response, response.sum(0, keepdim=True)])).numpy()


def job(attention: BlockSparseAttention, x: torch.Tensor, degrees: list[int], draws: int) -> np.ndarray:
    """One layer in one order: (state, draw, degree, branch, part)."""
    torch.set_num_threads(1)
    basis = harmonics(attention.stage.nside)
    seeds = itertools.count(SEED)
    return np.array(
        [[list(respond(attention.parts, one[None], degrees, next(seeds), basis)) for _ in range(draws)] for one in x]
    )


def measure(
    model: xmosaic.Model, ds: xr.Dataset, times: pd.DatetimeIndex, degrees: list[int], draws: int, workers: int
) -> xr.Dataset:
    """Response of every layer, order and branch.

    Returns
    -------
    Dataset, dims (layer, order, time, draw, total_wavenumber, branch)
        `same`, `larger`, `smaller`: power of the response over that of the input.
    """
    config, given, own = model.config, inputs(model, ds, times), layers(model.network)
    names = [(layer, order) for layer in own for order in BLOCK_ORDERS]
    jobs = [(reordered(own[a], config, b), given[a].clone(), degrees, draws) for a, b in names]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(job, *one) for one in jobs]
        found = np.stack([w.result() for w in tqdm(waiting, desc="layers and orders", unit="")])
    found = found.reshape(len(own), len(BLOCK_ORDERS), *found.shape[1:])
    dims = ("layer", "order", "time", "draw", "total_wavenumber", "branch")
    coords = {"layer": list(own), "order": list(BLOCK_ORDERS), "time": times, "total_wavenumber": degrees}
    coords["branch"] = [*config.branches, ALL]
    result = xr.Dataset({n: (dims, found[..., i]) for i, n in enumerate(("same", "larger", "smaller"))}, coords)
    return labelled(result).assign_attrs(
        model=f"{model.name} {model.sha256[:12]}", source=f"xmosaic {xmosaic.__version__}"
    )


def labelled(ds: xr.Dataset) -> xr.Dataset:
    """Units and long names."""
    where = {"same": "at the input's degree", "larger": "at lower degrees", "smaller": "at higher degrees"}
    for name, words in where.items():
        ds[name].attrs = {"long_name": f"power of the linear response {words}, over the input's", "units": "1"}
    ds["total_wavenumber"].attrs = {"long_name": "degree of the input's spherical harmonics", "units": "1"}
    ds["branch"].attrs = {"long_name": "branch of attention, times its gate; all: their sum"}
    ds["order"].attrs = {"long_name": "which points share a block, with the weights trained on nested blocks"}
    ds["time"].attrs = {"long_name": "newest time of the state", "standard_name": "time"}
    return ds


def summary(ds: xr.Dataset) -> xr.Dataset:
    """Means of power over states and draws: `transfer`, the power at the input's degree over the input's, and
    `leakage`, the share of the response's power at other degrees, for each layer."""
    mean = ds.mean([d for d in ("time", "draw") if d in ds.dims])
    other = mean["larger"] + mean["smaller"]
    return xr.Dataset({"transfer": mean["same"], "leakage": other / (other + mean["same"])})


# ------------------------------------------------------------------------------------------------------------ picture


def draw_response(ds: xr.Dataset, path: Path) -> None:
    """Transfer and leakage of each branch over the degree; lines are means over layers, bands all of them.

    How strongly layers answer differs by a thousand: the transfer is over that of the whole layer, as trained, at the
    lowest degree.
    """
    found = summary(ds)
    found["transfer"] = found["transfer"] / found["transfer"].sel(branch=ALL, order="nested").isel(total_wavenumber=0)
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    axes = figure.subplots(2, ds.sizes["branch"], sharex=True, sharey="row")
    for (row, name), (column, branch) in itertools.product(enumerate(found), enumerate(ds["branch"].values)):
        ax = axes[row, column]
        for order in ds["order"].values:
            one = found[name].sel(order=order, branch=branch)
            middle = np.exp(np.log(one).mean("layer")) if name == "transfer" else one.mean("layer")
            (line,) = ax.plot(one["total_wavenumber"], middle, label=TITLES[str(order)])
            low, high = one.min("layer"), one.max("layer")
            ax.fill_between(one["total_wavenumber"], low, high, alpha=0.15, color=line.get_color())
        axes[0, column].set(title=f"{branch} branch" if branch != ALL else "whole layer", yscale="log")
        axes[1, column].set(xlabel="degree of the input", ylim=(0, 1.02))
    degree, cells = ds["total_wavenumber"].values, 12 * ((ds.attrs["largest_degree"] + 1) // 3) ** 2
    for ax in axes[1]:
        ax.plot(degree, 1 - (2 * degree + 1) / cells, "--", color="0.5", linewidth=1, label="white noise")
    axes[0, 0].set_ylabel("power at the input's degree\n(1: whole layer, degree 1)")
    axes[1, 0].set_ylabel("share of the response's power\nat other degrees")
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=90)


def table(ds: xr.Dataset, degrees: tuple[int, ...] = (1, 9, 17, 31)) -> str:
    """Transfer and leakage at some degrees as lines of text, means over layers."""
    found = summary(ds).sel(total_wavenumber=list(degrees), method="nearest")
    lines = [f"{'branch':11} {'order':9} " + " ".join(f"{f'l={int(d)}':>14}" for d in found["total_wavenumber"])]
    for branch, order in itertools.product(ds["branch"].values, ds["order"].values):
        one = found.sel(branch=branch, order=order)
        power, leak = np.exp(np.log(one["transfer"]).mean("layer")), one["leakage"].mean("layer")
        cells = (f"{float(p):8.3g} {float(s):5.2f}" for p, s in zip(power, leak, strict=True))
        lines.append(f"{branch:11} {order:9} " + " ".join(f"{c:>14}" for c in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="bundled")
    parser.add_argument("--out", type=Path, default=KEPT)
    parser.add_argument("--states", type=int, default=3, help="spread over the bundled sample")
    parser.add_argument("--draws", type=int, default=1, help="random fields per state and degree, one in each feature")
    parser.add_argument("--every", type=int, default=2, help="of the degrees")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--picture", action="store_true", help="only draw what FOLDER holds")
    o = parser.parse_args()
    if not o.picture:
        began, model, sample = time.perf_counter(), xmosaic.load_model(o.model), xmosaic.open_sample()
        largest = 3 * model.config.stages[0].nside - 1
        first = model.config.num_history - 1
        places = np.linspace(first, sample.sizes["time"] - 1, o.states).round().astype(int)
        times = pd.DatetimeIndex(sample["time"].values[places])
        found = measure(model, sample, times, list(range(1, largest + 1, o.every)), o.draws, o.workers)
        o.out.mkdir(parents=True, exist_ok=True)
        found.assign_attrs(largest_degree=largest).to_netcdf(o.out / "response.nc", engine=ENGINE)
        print(f"{time.perf_counter() - began:.0f} s")
    stored = xr.load_dataset(o.out / "response.nc")
    print(table(stored))
    PICTURES.mkdir(parents=True, exist_ok=True)
    draw_response(stored, PICTURES / "response.png")


if __name__ == "__main__":
    main()
