"""Muon and AdamW against their definitions, their split, and their memory through an interruption."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import GRID, make_model
from torch import nn

from xmosaic.errors import ArgumentError, CheckpointError
from xmosaic.model import PUBLISHED, Mosaic
from xmosaic.training.config import Stage, TrainConfig
from xmosaic.training.muon import Muon, orthogonal
from xmosaic.training.optim import Ema, Optimiser, learning_rate, split_parameters

RATE = 0.02


def settings(**changes):
    """A configuration as the optimiser reads it."""
    values = {"stages": (Stage(updates=10, learning_rate=RATE),), "train": ("2000", "2001")}
    network = make_model().config
    return TrainConfig(network=network, validation=("2002", "2002"), **(values | changes))


class Layers(nn.Module):
    """A matrix for each optimiser and a bias, with names that the split goes by."""

    def __init__(self, rows=24, columns=16, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.preprocess = nn.ModuleList([nn.Linear(12, columns, bias=True)])
        self.hidden = nn.Linear(columns, rows, bias=False)
        self.thin = nn.Linear(rows, 3, bias=False)
        with torch.no_grad():
            for weight in self.parameters():
                weight.normal_(0, 0.3, generator=generator)


def give_gradients(network, update, scale=1.0):
    generator = torch.Generator().manual_seed(100 + update)
    for weight in network.parameters():
        if weight.requires_grad:
            weight.grad = scale * torch.randn(weight.shape, generator=generator)


def copies(network):
    return {name: weight.detach().clone() for name, weight in network.named_parameters()}


# ------------------------------------------------------------------------------------------------- Muon and AdamW


def newton_schulz(g, steps=5):
    """X ← aX + b(XXᵀ)X + c(XXᵀ)²X from X = G / ‖G‖, on the wide side, in float64."""
    x = g.double() / g.double().norm()
    x = x.T if g.shape[0] > g.shape[1] else x
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
    return x.T if g.shape[0] > g.shape[1] else x


def muon_twin(weight, grads, rate=RATE, decay=0.01, momentum=0.95, nesterov=True, steps=5, factor=None):
    rows, columns = weight.shape
    factor = math.sqrt(max(1, rows / columns)) if factor is None else factor
    weight, buffer = weight.double(), torch.zeros_like(weight, dtype=torch.float64)
    for g in grads:
        buffer = momentum * buffer + (1 - momentum) * g.double()
        direction = momentum * buffer + (1 - momentum) * g.double() if nesterov else buffer
        weight = (1 - rate * decay) * weight - rate * factor * newton_schulz(direction, steps)
    return weight


@pytest.mark.parametrize("shape", [(24, 16), (12, 40), (16, 16), (64, 8)])
def test_muon_is_its_definition(shape):
    """The steps are made in bfloat16, so to a per cent of what has moved; what isn't Muon is further away."""
    network = Layers(*shape)
    start = copies(network)["hidden.weight"]
    optimiser = Optimiser(network, settings(weight_decay=0.5), split_parameters(network))
    optimiser.set_rate(RATE)
    grads = []
    for update in range(4):
        give_gradients(network, update)
        grads.append(network.hidden.weight.grad.clone())
        optimiser.step()
    expected = muon_twin(start, grads, decay=0.5)
    moved = (expected - start).norm()

    def distance(twin):
        return float((network.hidden.weight.detach().double() - twin).norm() / moved)

    assert distance(expected) < 0.015
    other = {"nesterov": False, "steps": 4, "momentum": 0.5, "rate": 1.1 * RATE, "factor": 0.2 * math.sqrt(max(shape))}
    for name, value in (*other.items(), ("steps", 6), ("decay", 0.0)):
        assert distance(muon_twin(start, grads, **({"decay": 0.5} | {name: value}))) > 0.03, name


def test_many_matrices_at_once_are_torchs_muon_one_by_one():
    """As far apart as bfloat16 takes them, where another shape, order or momentum would be far off."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(24, 16), (12, 40), (24, 16), (16, 24), (64, 8), (24, 16)]
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, theirs = ([nn.Parameter(w.clone()) for w in start] for _ in range(2))
    muon = Muon(ours, weight_decay=0.1, momentum=0.9)
    torchs = torch.optim.Muon(theirs, lr=RATE, weight_decay=0.1, momentum=0.9, adjust_lr_fn="original")
    for w in ours:
        muon.state[w]["momentum_buffer"] = torch.zeros_like(w)
    muon.param_groups[0]["lr"] = RATE
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator) * 10 ** float(torch.randn((), generator=generator))
            b.grad = a.grad.clone()
        muon.step()
        torchs.step()
    for a, b, w in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() < 0.01 * (b - w).norm()


def test_orthogonal_is_newton_schulz_and_leaves_zeros_alone():
    generator = torch.Generator().manual_seed(1)
    some = [torch.randn(shape, generator=generator) for shape in ((9, 30), (30, 9), (9, 30))]
    for made, given in zip(orthogonal(some), some, strict=True):
        assert made.dtype == torch.bfloat16
        assert (made.double() - newton_schulz(given)).norm() < 0.02 * newton_schulz(given).norm()
    assert not orthogonal([torch.zeros(4, 6)])[0].any()
    assert orthogonal([]) == []


@pytest.mark.parametrize("shape", [(64, 16), (16, 64)])
def test_muon_updates_are_as_large_as_the_rate_says(shape):
    """All singular values near η √max(1, rows / columns), whatever the gradient's scale."""
    network = Layers(*shape)
    optimiser = Optimiser(network, settings(weight_decay=0.0), split_parameters(network))
    start = copies(network)["hidden.weight"]
    give_gradients(network, 0, scale=1e-4)
    optimiser.step()
    sizes = torch.linalg.svdvals(network.hidden.weight.detach() - start) / RATE / math.sqrt(max(1, shape[0] / shape[1]))
    assert sizes.min() > 0.5 and sizes.max() < 1.4


def test_adamw_is_its_definition():
    network = Layers()
    start = copies(network)
    config = settings(weight_decay=0.5, adam_rate=0.1, betas=(0.8, 0.9))
    optimiser = Optimiser(network, config, split_parameters(network))
    names = ("preprocess.0.weight", "preprocess.0.bias", "thin.weight")
    grads = {name: [] for name in names}
    for update in range(5):
        optimiser.set_rate(rate := RATE * (update + 1))
        give_gradients(network, update)
        for name in names:
            grads[name].append((rate, network.get_parameter(name).grad.clone().double()))
        optimiser.step()
    for name in names:
        weight = start[name].double()
        decay = 0.0 if name.endswith("bias") else 0.5  # on matrices only
        first = second = torch.zeros_like(weight)
        for t, (rate, g) in enumerate(grads[name], 1):
            first, second = 0.8 * first + 0.2 * g, 0.9 * second + 0.1 * g**2
            unbiased, square = first / (1 - 0.8**t), second / (1 - 0.9**t)
            weight = weight - 0.1 * rate * (decay * weight + unbiased / (square.sqrt() + 1e-8))
        torch.testing.assert_close(network.get_parameter(name).detach().double(), weight, rtol=2e-6, atol=1e-7)


def test_first_rate_is_the_first_stage_and_zero_moves_nothing():
    one, other = Layers(), Layers()
    for network in (one, other):
        give_gradients(network, 0)
    Optimiser(one, settings(), split_parameters(one)).step()
    optimiser = Optimiser(other, settings(), split_parameters(other))
    optimiser.set_rate(RATE)
    optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    optimiser.set_rate(0.0)
    before = copies(other)
    optimiser.step()
    assert all(torch.equal(before[n], w) for n, w in other.named_parameters())


def test_memory_from_the_start_is_torchs_own():
    """Torch makes its memory at the first step; made before, nothing changes, bit for bit."""
    ours, theirs = Layers(), Layers()
    split, config = split_parameters(ours), settings()
    optimiser = Optimiser(ours, config, split)
    muon = torch.optim.Muon([theirs.hidden.weight], lr=RATE, weight_decay=0.01, momentum=0.95)
    rate = RATE * config.adam_rate
    first, thin = theirs.preprocess[0], theirs.thin
    groups = [{"params": [first.weight, thin.weight], "weight_decay": 0.01}, {"params": [first.bias]}]
    adam = torch.optim.AdamW(groups, lr=rate, betas=config.betas, weight_decay=0.0)
    for update in range(3):
        for network, steps in ((ours, (optimiser,)), (theirs, (muon, adam))):
            give_gradients(network, update)
            for one in steps:
                one.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_clip_scales_all_gradients_together():
    network = Layers()
    optimiser = Optimiser(network, settings(), split_parameters(network))
    give_gradients(network, 0)
    grads = {n: w.grad.clone() for n, w in network.named_parameters()}
    norm = math.sqrt(sum(g.double().square().sum() for g in grads.values()))
    for limit in (None, math.inf, 2 * norm):
        assert float(optimiser.clip(limit)) == pytest.approx(norm, rel=1e-6)
        assert all(torch.equal(grads[n], w.grad) for n, w in network.named_parameters())
    assert float(optimiser.clip(0.5)) == pytest.approx(norm, rel=1e-6)
    assert float(optimiser.clip(None)) == pytest.approx(0.5, rel=1e-5)
    for name, weight in network.named_parameters():
        torch.testing.assert_close(weight.grad, grads[name] * (0.5 / norm), rtol=1e-4, atol=1e-8)


def test_infinite_gradient_shows_in_the_norm_and_is_left_alone():
    network = Layers()
    optimiser = Optimiser(network, settings(), split_parameters(network))
    give_gradients(network, 0)
    network.hidden.weight.grad[0, 0] = math.inf
    kept = network.thin.weight.grad.clone()
    assert float(optimiser.clip(None)) == math.inf
    assert torch.equal(network.thin.weight.grad, kept)


# ---------------------------------------------------------------------------------------------------------- split


def test_split_of_a_small_network():
    network = make_model().network
    split = split_parameters(network)
    names = [n for n, _ in network.named_parameters()]
    assert sorted((*split.muon, *split.adam)) == sorted(names)
    assert not split.frozen
    expected = {
        "preprocess.0.weight",
        "postprocess.3.weight",
        "interp_to_hp.to_q.weight",
        "interp_to_ll.to_q.weight",
        "downsample_layers.0.proj_pos.weight",
        "upsample_layers.0.proj_pos.weight",
        # 3 branches of 2 heads are fewer than 8 rows
        "bottleneck.blocks.0.attention.to_strategy_combine_mlp.weight",
    }
    assert set(split.adam) == expected
    assert {"preprocess.3.weight", "noise_generator.to_noise.weight", "postprocess.1.weight"} <= set(split.muon)


def published_shapes():
    """The published network on meshes so small that the tables cost nothing: names and shapes are the same."""
    c = PUBLISHED["era5"]
    tiny = {"local_size": 1, "block_size": 1, "block_count": 1}
    stages = [
        dataclasses.replace(s, nside=n, **tiny) for s, n in zip((*c.stages, c.bottleneck), (4, 2, 1), strict=True)
    ]
    config = dataclasses.replace(c, stages=tuple(stages[:2]), bottleneck=stages[2], num_neighbors=1)
    neighbors = np.zeros((192, 1), int), np.zeros((84, 1), int)
    with torch.device("meta"):
        return Mosaic(config, np.array(GRID.longitude), np.array(GRID.latitude), np.zeros((12, 7, 3)), neighbors)


def test_split_of_the_published_network():
    network = published_shapes()
    split = split_parameters(network)
    print(split)
    assert sum(split.sizes.values()) == 214_184_448
    assert sorted((*split.muon, *split.adam)) == sorted(n for n, _ in network.named_parameters())
    # 174 and 82 channels, 2 × 3 directions, positions of children at 2 × 2 levels
    assert sum(split.sizes[n] for n in split.adam) == 768 * (174 + 82 + 6 + 4 * 12) + 1024 * (12 + 4 * 12) + 1280 * 12
    assert str(split).splitlines()[1:] == [
        "Muon         123   213,869,568   99.85%",
        "AdamW          8       314,880    0.15%",
        "frozen         0             0    0.00%",
        "all          131   214,184,448  100.00%",
    ]


@pytest.mark.parametrize("variant", PUBLISHED)
def test_split_knows_every_name_of_the_published_files(shared, variant):
    shapes = json.loads((shared / "parity" / f"published_{variant}_params.json").read_text())
    tensors = {n.removeprefix("model."): torch.empty(s, device="meta") for n, s in shapes.items()}
    split = split_parameters(SimpleNamespace(named_parameters=tensors.items))
    assert (len(split.muon), len(split.adam)) == (123, 8)


def test_frozen_parameters_stay():
    network = make_model().network
    split = split_parameters(network, ("encoder_stages.*", "*.w2.weight"))
    assert len(split.frozen) == sum(n.startswith("encoder_stages.") or "w2" in n for n, _ in network.named_parameters())
    assert not {*split.muon, *split.adam} & {*split.frozen}
    optimiser = Optimiser(network, settings(), split)
    assert {n for n, w in network.named_parameters() if not w.requires_grad} == set(split.frozen)
    before = copies(network)
    give_gradients(network, 0)
    optimiser.step()
    still = {n for n, w in network.named_parameters() if torch.equal(before[n], w)}
    assert still == set(split.frozen)
    assert set(optimiser.state_dict()) == {*split.muon, *split.adam}


def test_thawed_parameters_ask_for_gradients_again():
    network = make_model().network
    Optimiser(network, settings(), split_parameters(network, "encoder_stages.*"))
    Optimiser(network, settings(), split_parameters(network))
    assert all(w.requires_grad for w in network.parameters())


@pytest.mark.parametrize(
    ("frozen", "text"),
    [(("encoder_stage.0.*",), "'encoder_stages.0"), (("bottleneck.*", "zzz"), "'zzz' matches no"), (("*",), "Nothing")],
)
def test_frozen_patterns_that_cannot_be_used(frozen, text):
    with pytest.raises(ArgumentError, match=text):
        split_parameters(make_model().network, frozen)


# ------------------------------------------------------------------------------------------------- memory, resume


def train_some(network, optimiser, ema, updates):
    stage = Stage(updates=10, warmup=3)
    generator = torch.Generator()
    for update in updates:
        generator.manual_seed(update)
        history = torch.randn(1, 2, 2, *GRID.shape[::-1], 5, generator=generator)
        noise = torch.randn(1, 2, 32, generator=generator)
        optimiser.set_rate(learning_rate(stage, update))
        optimiser.zero_grad()
        network(history, torch.zeros(1, 2), noise).square().mean().backward()
        optimiser.clip(1.0)
        optimiser.step()
        ema.update(network)


def fresh(schema=None):
    network = (make_model() if schema is None else make_model(schema)).network
    return network, Optimiser(network, settings(), split_parameters(network)), Ema(network, 0.9)


def test_interrupted_is_uninterrupted(tmp_path):
    """Through a file, bit for bit: weights, memory and running mean."""
    whole, parts = fresh(), fresh()
    train_some(*whole, range(6))
    train_some(*parts, range(3))
    network, optimiser, ema = parts
    state = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "ema": ema.state_dict()}
    torch.save(state, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    network, optimiser, ema = later = fresh()
    network.load_state_dict(state["network"])
    optimiser.load_state_dict(state["optimiser"])
    ema.load_state_dict(state["ema"])
    train_some(*later, range(3, 6))
    for ours, theirs in zip(network.parameters(), whole[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for name, memory in whole[1].state_dict().items():
        assert all(torch.equal(memory[key], optimiser.state_dict()[name][key]) for key in memory)
    assert all(torch.equal(v, ema.state_dict()["mean"][n]) for n, v in whole[2].state_dict()["mean"].items())
    assert ema.updates == 6


def test_state_goes_by_name_not_by_order():
    _, optimiser, _ = fresh()
    state = optimiser.state_dict()
    for i, memory in enumerate(state.values()):
        for value in memory.values():
            value.fill_(i)
    _, other, _ = fresh()
    other.load_state_dict(dict(reversed(state.items())))
    for i, memory in enumerate(other.state_dict().values()):
        assert all((value == i).all() for value in memory.values())


def test_state_of_another_network():
    network, optimiser, ema = fresh()
    train_some(network, optimiser, ema, range(2))
    state, mean = optimiser.state_dict(), ema.state_dict()
    network = make_model().network
    frozen = split_parameters(network, "bottleneck.*")
    other = Optimiser(network, settings(), frozen)
    with pytest.raises(CheckpointError, match="with 'bottleneck"):
        other.load_state_dict(state)
    other.load_state_dict(state, strict=False)
    assert torch.equal(
        other.state_dict()["preprocess.3.weight"]["momentum_buffer"], state["preprocess.3.weight"]["momentum_buffer"]
    )
    del state["preprocess.3.weight"], mean["mean"]["preprocess.3.weight"]
    _, whole, running = fresh()
    with pytest.raises(CheckpointError, match="without 'preprocess.3.weight'"):
        whole.load_state_dict(state)
    with pytest.raises(CheckpointError, match="without 'preprocess.3.weight'"):
        running.load_state_dict(mean)
    whole.load_state_dict(state, strict=False)
    assert not whole.state_dict()["preprocess.3.weight"]["momentum_buffer"].any()
    running.load_state_dict(mean, strict=False)
    assert running.updates == 2


def test_state_of_another_shape_or_kind():
    _, optimiser, ema = fresh()
    state, mean = optimiser.state_dict(), ema.state_dict()
    state["postprocess.3.weight"] = {"momentum_buffer": torch.ones(5, 16)}
    with pytest.raises(CheckpointError, match=r"'postprocess.3.weight' doesn't fit. Found momentum_buffer \(5, 16\)"):
        optimiser.load_state_dict(state)
    optimiser.load_state_dict(state, strict=False)
    mean["mean"]["preprocess.0.weight"] = torch.ones(3, 3)
    with pytest.raises(CheckpointError, match=r"'preprocess.0.weight' misfits. Found \(3, 3\)"):
        ema.load_state_dict(mean)
    ema.load_state_dict(mean, strict=False)
