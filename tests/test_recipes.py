"""Recipes: what the paper says, what the dial does, and that every figure in the docstrings is right."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from models import GRID, make_model

from xmosaic.errors import ArgumentError
from xmosaic.model import PUBLISHED, Mosaic
from xmosaic.training import recipes
from xmosaic.training.config import Stage, TrainConfig
from xmosaic.training.optim import learning_rate
from xmosaic.variables import Schema, published_schema

PERIODS = {"train": ("2000", "2001"), "validation": ("2002", "2002")}


def count_parameters(config, variables, static):
    """Without their memory, and with tables of one neighbour each."""
    config = dataclasses.replace(config, num_variables=variables, num_static=static, num_neighbors=1)
    neighbors = np.zeros((config.stages[0].points, 1), int), np.zeros((84, 1), int)
    with torch.device("meta"):
        network = Mosaic(
            config, np.array(GRID.longitude), np.array(GRID.latitude), np.zeros((12, 7, static)), neighbors
        )
    return sum(weight.numel() for weight in network.parameters())


def coarse(config):
    """The same widths and depths on the smallest meshes: parameters don't depend on them."""
    one = {"local_size": 1, "block_size": 1, "block_count": 1}
    stages = [dataclasses.replace(s, nside=4 // 2**i, **one) for i, s in enumerate((*config.stages, config.bottleneck))]
    return dataclasses.replace(config, stages=tuple(stages[:2]), bottleneck=stages[2])


# ------------------------------------------------------------------------------------------------------ the paper


@pytest.mark.parametrize(
    ("config", "variant", "parameters"),
    [(recipes.paper_era5(), "era5", 214_184_448), (recipes.paper_hres(), "hres", 214_310_400)],
)
def test_paper_is_the_published_network_with_its_own_channels(config, variant, parameters):
    assert config.network == dataclasses.replace(PUBLISHED[variant], grouping="group", clock="calendar")
    assert Schema.from_variables(dict(config.variables), static=config.static) == published_schema()
    assert count_parameters(coarse(config.network), 82, 3) == parameters
    doc = getattr(recipes, f"paper_{variant}").__doc__
    assert f"{parameters:,}".replace(",", " ") in doc


@pytest.mark.parametrize(
    "config", [recipes.paper_era5(), recipes.paper_hres(), recipes.paper_hres(make_model(step_hours=6))]
)
def test_paper_protocol(config):
    """Model.md, section 5: fair CRPS, rate 0.02, longer rollouts later, with 500 updates from 1e-6 η; all cosines."""
    assert config.loss == "crps" and not config.area_statistics
    for stage in config.stages:
        assert learning_rate(stage, stage.warmup) == 0.02
        assert learning_rate(stage, stage.updates - 1) == 0.0
        if stage.warmup:
            assert stage.warmup == 500 and learning_rate(stage, 0) == pytest.approx(0.02e-6)
    rollouts = [s.rollout for s in config.stages]
    assert rollouts[0] == 1 and rollouts == sorted(set(rollouts))
    assert all(s.warmup for s in config.stages[1:])
    assert config.patience


def test_paper_pretrains_without_warmup_and_tunes_with_it():
    assert recipes.paper_era5().stages[0].warmup == recipes.paper_hres().stages[0].warmup == 0
    assert recipes.paper_hres(init=make_model(step_hours=6)).stages[0].warmup == 500


def test_paper_periods():
    assert recipes.paper_era5().test == ("2020", "2020")
    assert recipes.paper_hres().train == recipes.paper_era5().train == ("1979", "2017")
    tuned = recipes.paper_hres(init=make_model(step_hours=6))
    assert (tuned.train[0], tuned.validation[1], tuned.test) == ("2016", "2021", ("2022", "2022"))
    given = recipes.paper_era5(train=("1990", "1999"), validation=("2001", "2001"), test=None)
    assert (given.train, given.validation, given.test) == (("1990", "1999"), ("2001", "2001"), None)
    with pytest.raises(ArgumentError, match="overlap"):
        recipes.paper_era5(train=("1979", "2018"))


def test_paper_hres_takes_the_network_of_its_weights(tmp_path):
    """From memory or a file, as it is: weights of the release need its grouping."""
    model = make_model(step_hours=6, grouping="strided", num_history=4)
    for init in (model, model.save(tmp_path / "pretrained.safetensors")):
        assert recipes.paper_hres(init=init).network == model.config
    with pytest.raises(ArgumentError, match="steps of 24 h"):
        recipes.paper_hres(init=make_model())


@pytest.mark.parametrize(
    "config", [recipes.paper_era5(), recipes.small(**PERIODS), recipes.small(3.5, rollout=4, **PERIODS)]
)
def test_recipes_survive_json(config):
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


# ------------------------------------------------------------------------------------------------------- the dial


def test_table_is_right():
    rows = re.findall(
        r"^    ([\d.]+) +(\d+), (\d+), (\d+) +(\d+) +([\d ]+?) +(\d+) +([\d.]+)$", recipes.small.__doc__, re.M
    )
    assert [float(row[0]) for row in rows] == [0.25, 1, 4, 16, 64]
    for size, *widths, blocks, parameters, batch, rate in rows:
        config = recipes.small(float(size), **PERIODS)
        stages = (*config.network.stages, config.network.bottleneck)
        assert [str(s.dim) for s in stages] == widths
        assert sum(s.encoder_depth + s.decoder_depth for s in stages) == int(blocks)
        assert count_parameters(config.network, 4, 1) == int(parameters.replace(" ", ""))
        assert config.stages[0].batch_size == int(batch)
        assert config.adam_rate * config.stages[0].learning_rate == pytest.approx(float(rate))


def test_default_is_of_one_to_two_million():
    config = recipes.small(**PERIODS)
    assert 1e6 < count_parameters(config.network, 4, 1) < 2e6
    assert config.network.stages[0].nside == 16 and config.network.step_hours == 24


def test_full_size_is_the_published_network():
    config = recipes.small(64, nside=64, neighbors=24, **PERIODS)
    same = {"grouping": "group", "clock": "calendar", "num_variables": 1, "num_static": 0}
    assert config.network == dataclasses.replace(PUBLISHED["era5"], **same)
    assert config.adam_rate == recipes.paper_era5().adam_rate
    assert config.stages[0].batch_size == recipes.paper_era5().stages[0].batch_size


def test_more_size_is_never_less():
    sizes = np.geomspace(0.01, 128, 60)
    configs = [recipes.small(float(s), **PERIODS) for s in sizes]
    counts = [count_parameters(coarse(c.network), 4, 1) for c in configs]
    assert np.all(np.diff(counts) >= 0) and len(set(counts)) > 15
    assert np.all(np.diff([c.stages[0].batch_size for c in configs]) >= 0)
    assert np.all(np.diff([c.adam_rate for c in configs]) <= 0)


@pytest.mark.parametrize("nside", [4, 8, 16, 32, 64])
@pytest.mark.parametrize("size", [0.01, 1, 10, 64])
def test_any_mesh_can_be_used(nside, size):
    """The configuration's own checks pass; each branch sees a part of the sphere, not all of it."""
    network = recipes.small(size, nside=nside, **PERIODS).network
    for stage in (*network.stages, network.bottleneck):
        assert stage.local_size * 3 <= stage.points
        assert stage.block_count * stage.block_size * 2 <= stage.points


def test_smallest_makes_a_step():
    config = recipes.small(0.01, nside=4, neighbors=4, **PERIODS)
    network = Mosaic(
        dataclasses.replace(config.network, num_variables=2), np.array(GRID.longitude), np.array(GRID.latitude)
    )
    out = network(torch.randn(1, 2, 2, 12, 7, 2), torch.zeros(1, 2), torch.randn(1, 2, 32))
    assert out.shape == (1, 2, 12, 7, 2) and out.isfinite().all()


def test_small_takes_what_it_is_given():
    config = recipes.small(
        step_hours=6,
        history=3,
        members=4,
        updates=200,
        rollout=3,
        seed=7,
        variables={"2m_temperature": None},
        **PERIODS,
    )
    assert (config.network.step_hours, config.network.num_history, config.members) == (6, 3, 4)
    assert config.stages == (Stage(200, 1, 4, 0.02), Stage(40, 3, 4, 0.02, warmup=4))
    assert config.seed == 7 and config.variables == {"2m_temperature": None}
    assert recipes.small(validate_every=17, **PERIODS).validate_every == 17
    assert recipes.small(updates=1, rollout=2, **PERIODS).updates == 2


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"size": 0}, "above 0"),
        ({"size": float("nan")}, "above 0"),
        ({"size": "big"}, "above 0"),
        ({"size": True}, "above 0"),
        ({"nside": 2}, "4 or more"),
        ({"nside": 12}, "power of two"),
        ({"members": 1}, "members"),
        ({"updates": 0}, "updates"),
        ({"rollout": 0}, "rollout"),
    ],
)
def test_small_with_what_cannot_be_used(given, text):
    with pytest.raises(ArgumentError, match=text):
        recipes.small(**(PERIODS | given))
