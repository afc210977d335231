"""The names that a configuration can use: each is implemented, explained, and says rightly what it needs."""

import dataclasses
from pathlib import Path

import pytest

from minimoe import names
from minimoe.config import ModelConfig
from minimoe.moe import capacity, losses, routers

FIELDS = {field.name: field for field in dataclasses.fields(ModelConfig)}

each_router = pytest.mark.parametrize("name", names.ROUTERS)


def test_every_router_is_a_policy_but_for_the_one_that_routes_nothing():
    assert [name for name, router in names.ROUTERS.items() if router.soft] == ["soft"]
    assert [*routers.POLICIES, "soft"] == list(names.ROUTERS)


def test_every_policy_is_a_file_of_its_name_and_every_file_a_policy():
    files = {path.stem for path in Path(routers.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == routers.POLICIES.keys()
    assert {name: policy.__name__ for name, policy in routers.POLICIES.items()} == {
        name: f"minimoe.moe.routers.{name}" for name in files}


@each_router
def test_a_router_alone_makes_a_configuration_that_is_possible(name):
    config = ModelConfig(router=name, top_k=names.ROUTERS[name].top_k or 2)
    assert config.router == name


@each_router
def test_the_options_of_a_router_are_fields(name):
    assert set(names.ROUTERS[name].options) <= FIELDS.keys()


@each_router
def test_a_router_accepts_its_own_options(name):
    other = {"renormalize": False, "jitter": 0.2, "bias_rate": 0.1, "n_groups": 2, "top_groups": 1, "gate_scale": 2.0}
    router = names.ROUTERS[name]
    fields = {option: other[option] for option in router.options}
    ModelConfig(router=name, **{"top_k": router.top_k or 2} | fields)


@each_router
def test_no_router_accepts_the_options_of_others(name):
    other = {"renormalize": False, "jitter": 0.2, "bias_rate": 0.1, "n_groups": 2, "gate_scale": 2.0}
    router = names.ROUTERS[name]
    for option in other.keys() - set(router.options):
        with pytest.raises(ValueError, match=f"^{option} = {other[option]}: router '{name}' has no use for it; "):
            ModelConfig(router=name, top_k=router.top_k or 2, **{option: other[option]})


@each_router
def test_a_router_is_trained_with_losses_that_exist_and_weigh_something(name):
    usual = names.ROUTERS[name].losses
    assert usual.keys() <= names.LOSSES.keys()
    assert all(coef > 0 for coef in usual.values())


def test_every_loss_is_a_pair_and_a_weight_in_the_configuration():
    assert names.LOSSES.keys() == losses.LOSSES.keys()
    assert [name for name in FIELDS if name.endswith("_coef")] == [f"{name}_coef" for name in names.LOSSES]


@pytest.mark.parametrize("name", names.LOSSES)
def test_the_help_of_a_weight_says_what_the_loss_is(name):
    assert names.LOSSES[name] in FIELDS[f"{name}_coef"].metadata["help"]


def test_every_drop_order_is_implemented():
    assert names.DROP_ORDERS.keys() == capacity.ORDERS.keys()


def test_every_name_is_explained_in_words_of_its_own():
    words = [router.words for router in names.ROUTERS.values()] + [*names.LOSSES.values(), *names.DROP_ORDERS.values()]
    assert all(text.strip() for text in words)
    assert len(set(words)) == len(words)


def test_the_defaults_are_names():
    config = ModelConfig()
    assert config.router in names.ROUTERS
    assert config.drop_order in names.DROP_ORDERS
