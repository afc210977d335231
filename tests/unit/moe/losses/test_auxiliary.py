"""The auxiliary losses together: which are computed, where their gradients go, and that padding changes nothing."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe import capacity, layer, losses, routers
from minimoe.moe.routing import Tokens
from tests import cases

CONFIG = ModelConfig(vocab_size=7, d_model=8, n_layers=2, n_heads=2, d_hidden=4, n_experts=4, n_devices=2)

each_loss = pytest.mark.parametrize("name", losses.LOSSES)


def weighted(names, router="noisy_topk"):
    """A configuration in which these losses have a weight and no other."""
    coefs = {f"{name}_coef": 0.5 * (name in names) for name in losses.LOSSES}
    return cases.with_router(CONFIG, router, **coefs)


def routed(config, n_padding=0):
    """The Routing, and the cache of the layer, of two sequences of five random tokens, with padding after each."""
    rng, weights = np.random.default_rng(0), cases.random_weights(layer.weights(config, 1.0, 1.0))
    x_BSD = np.concatenate([rng.normal(size=(2, 5, 8)), np.full((2, n_padding, 8), 3)], axis=1)
    mask_BS = np.broadcast_to(np.arange(5 + n_padding) < 5, x_BSD.shape[:2])
    tokens = Tokens.of_batch(np.zeros(mask_BS.shape, int), mask_BS)
    (_, r), cache = layer.moe_forward(x_BSD.reshape(-1, 8), weights, config, tokens,
                                      training=config.router != "noisy_topk", rng=rng)
    return r, cache


def values(r, config, step=None):
    return losses.auxiliary_forward(r, config, step)[0]


def pulls(r, config, dlosses):
    """The RoutingGrad as a dict."""
    return losses.auxiliary_backward(dlosses, losses.auxiliary_forward(r, config)[1])._asdict()


@each_loss
def test_a_loss_is_returned_under_its_name_and_pulls_at_the_one_array_that_it_reads(name):
    config, loss = weighted([name]), losses.LOSSES[name]
    r, _ = routed(config)
    value, cache = loss.forward(r, *{"device": (2,)}.get(name, ()))
    assert values(r, config)[name] == value
    pulled = dict(z="dlogit_TE", importance="dgate_A", load="dchance_TE").get(name, "dprob_TE")
    expected = {array: 0 * pull for array, pull in pulls(r, config, {}).items()} | {pulled: loss.backward(3.0, cache)}
    cases.assert_equal(pulls(r, config, {name: 3.0}), expected)


def test_without_weights_balance_and_z_are_computed_and_nothing_else(monkeypatch):
    seen = []
    for name, loss in losses.LOSSES.items():
        def spy(r, *arguments, name=name, forward=loss.forward):
            seen.append(name)
            return forward(r, *arguments)
        monkeypatch.setitem(losses.LOSSES, name, loss._replace(forward=spy))
    r, _ = routed(weighted([]))
    assert values(r, weighted([])).keys() == {"balance", "z"}
    assert values(r, weighted(["entropy"])).keys() == {"balance", "z", "entropy"}
    assert seen == ["balance", "z", "balance", "z", "entropy"]


def test_the_given_load_is_for_the_balance_loss_alone():
    config = weighted(["balance", "device", "sequence"])
    r, load_E = routed(config)[0], np.array([0.7, 0.3, 0, 0])
    own, given = values(r, config), values(r, config, losses.Step(10, [load_E], 10))
    np.testing.assert_allclose(given["balance"], 4 * load_E @ r.prob_TE.mean(axis=0), rtol=1e-12)
    assert {name for name in own if own[name] != given[name]} == {"balance"}


def test_in_one_group_of_several_means_over_tokens_are_divided_by_the_tokens_of_the_mean_group():
    """Of 10 tokens where groups have 20 on average, half; the balance loss only if it is that of all groups, of 40."""
    config, r = weighted(["balance", "entropy", "z"]), routed(weighted([]))[0]
    own = values(r, config)
    for loads, balance in ((None, 1), ([r.load_E], 1 / 4)):
        got = values(r, config, losses.Step(20, loads, 40))
        expected = {name: value * (balance if name == "balance" else 1 / 2) for name, value in own.items()}
        assert got == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("router", "balance_first", "first"), [
    ("gshard", None, True), ("st_moe", None, True), ("softmax_topk", None, False), ("gshard", False, False),
    ("softmax_topk", True, True)])
def test_gshard_and_st_moe_count_first_choices_unless_the_configuration_says_otherwise(router, balance_first, first):
    """First choices 0, 0, 1 and second ones 1, 2, 2: f = 2/3, 1/3, 0 of 3, or 1/3 each."""
    prob_TE = np.array([[5, 3, 1], [5, 1, 3], [1, 5, 3]]) / 9
    r = cases.routed(prob_TE, 2)
    config = ModelConfig(n_experts=3, router=router, balance_coef=1.0, balance_first=balance_first)
    assert config.counts_first_choices == first
    load_E = [2 / 3, 1 / 3, 0] if first else [1 / 3] * 3
    value, cache = losses.auxiliary_forward(r, config)
    np.testing.assert_allclose(value["balance"], 3 * np.dot(load_E, [11 / 27, 9 / 27, 7 / 27]), rtol=1e-14)
    pull = losses.auxiliary_backward({"balance": 2.0}, cache).dprob_TE
    np.testing.assert_allclose(pull, [2 * np.array(load_E)] * 3, rtol=1e-14)


def test_pulls_add_up_and_a_loss_with_a_gradient_of_0_pulls_at_nothing():
    config = weighted(losses.LOSSES)
    r, _ = routed(config)
    dlosses = {name: 0.3 + 0.1 * i for i, name in enumerate(losses.LOSSES)}
    parts = [pulls(r, config, {name: dloss}) for name, dloss in dlosses.items()]
    cases.assert_close(pulls(r, config, dlosses), {array: sum(part[array] for part in parts) for array in parts[0]})
    assert not any(pull.any() for pull in pulls(r, config, dict.fromkeys(losses.LOSSES, 0.0)).values())


@each_loss
def test_a_loss_depends_on_no_padding_and_on_no_capacity(name):
    config = weighted([name])
    (r, _), (padded, _) = routed(config), routed(config, n_padding=3)
    np.testing.assert_allclose(values(padded, config)[name], values(r, config)[name], rtol=1e-14)
    for array, pull in pulls(padded, config, {name: 1.0}).items():
        if array != "dgate_A":  # padding has no assignments
            assert not pull.reshape(2, 8, 4)[:, 5:].any()
            pull = pull.reshape(2, 8, 4)[:, :5].reshape(10, 4)
        np.testing.assert_allclose(pull, pulls(r, config, {name: 1.0})[array], rtol=1e-12, atol=1e-17)
    limited, _ = capacity.keep_forward(r, 2, 0.3, "position")
    assert not limited.kept_A.all() and values(limited, config) == values(r, config)


@each_loss
def test_a_batch_of_padding_alone_has_a_loss_of_0_and_no_gradient(name):
    config = weighted([name])
    r, _ = routed(config)
    nowhere = dict.fromkeys(("token_A", "expert_A", "rank_A", "slot_A"), np.zeros(0, int))
    empty = replace(r, **nowhere, gate_A=r.gate_A[:0], kept_A=np.zeros(0, bool),
                    tokens=replace(r.tokens, mask_T=np.zeros(10, bool)))
    assert values(empty, config)[name] == 0
    assert not any(pull.any() for pull in pulls(empty, config, {name: 1.0}).values())


@pytest.mark.parametrize("router", routers.POLICIES)
def test_each_loss_alone_moves_a_router_that_learns_and_no_expert(router):
    for name in cases.losses_for(router):
        config = weighted([name], router)
        r, cache = routed(config)
        pull = losses.auxiliary_backward({name: 1.0}, losses.auxiliary_forward(r, config)[1])
        dx_TD, dweights = layer.moe_backward(np.zeros((10, 8)), pull, cache)
        even = router == "expert_choice" and name in ("balance", "device")  # its loads are even, whatever its scores
        if router in cases.SIGHTLESS or even:
            assert max(abs(array).max() for array in (dx_TD, *dweights.values())) < 1e-14
        else:
            assert np.linalg.norm(dweights["w_router_DE"]) > 1e-6 and np.linalg.norm(dx_TD) > 1e-6
        assert not any(dweights[name].any() for name in cases.EXPERTS)
