"""The contracts of every router, whatever its policy; and whether its flags about causality are true."""

import inspect
from dataclasses import replace

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe import routing
from minimoe.moe.routers import POLICIES
from minimoe.moe.routing import Tokens
from tests import cases

S, D, E = 8, 6, 5
CONFIG = ModelConfig(vocab_size=40, d_model=D, n_heads=1, n_experts=E, top_k=2)
IDS_BS = np.random.default_rng(1).integers(0, 40, (2, S))
MASK_BS = np.arange(S) < [[S], [S - 3]]
SIGMOID = "sigmoid_bias", "base"
"""Routers whose gate of a single expert is a sigmoid."""

each_router = pytest.mark.parametrize("name", POLICIES)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
each_learner = pytest.mark.parametrize("name", [name for name in POLICIES if name not in cases.SIGHTLESS])


def case_for(name, seed=0, **options):
    """x_TD, weights, config and Tokens with padding."""
    config = cases.with_router(CONFIG, name, **options)
    x_TD = np.random.default_rng(seed).normal(size=(2 * S, D))
    return x_TD, cases.random_weights(POLICIES[name].weights(config, 1.0), seed), config, Tokens.of_batch(
        IDS_BS, MASK_BS)


def every_k(name):
    """The case of each K that a router supports."""
    fixed = cases.fixed_k(name)
    return [case_for(name, top_k=top_k) for top_k in ([fixed] if fixed else [1, 2, E])]


def forward(case, training, replay=None, seed=0):
    """A Routing, cache.  In evaluation there is no generator, since it must be deterministic."""
    x_TD, weights, config, tokens = case
    options = dict(training=True, rng=np.random.default_rng(seed)) if training else {}
    return POLICIES[config.router].forward(x_TD, weights, config, tokens, replay=replay, **options)


def arrays_of(r):
    return {name: array for name, array in vars(r).items() if isinstance(array, np.ndarray)}


@each_mode
@each_router
def test_assignments_are_distinct_ranked_kept_and_of_real_tokens_alone(name, training):
    for case in every_k(name):
        r, _ = forward(case, training)
        top_k, real = case[2].top_k, np.flatnonzero(MASK_BS.ravel())
        for t in range(2 * S):
            mine = r.token_A == t
            assert len(set(r.expert_A[mine])) == mine.sum() <= (E if name == "expert_choice" else top_k)
            assert r.rank_A[mine].tolist() == list(range(mine.sum()))
        assert r.tokens is case[3] and set(r.token_A) <= set(real)
        assert name == "expert_choice" or set(r.token_A) == set(real)
        assert (np.diff(r.token_A) >= 0).all() and r.kept_A.all() and not r.slot_A.any() and r.capacity is None
        np.testing.assert_allclose(r.prob_TE.sum(axis=1), 1, rtol=1e-13)
        assert (r.gate_A > 0).all() and (r.gate_A <= 1).all()


@each_learner
def test_experts_are_told_apart_by_their_weights_alone_and_equal_scores_go_to_the_lowest_numbers(name):
    x_TD, weights, config, tokens = case = case_for(name)
    order = [2, 0, 4, 3, 1]
    before, _ = forward(case, training=False)
    after, _ = forward((x_TD, {key: w[..., order] for key, w in weights.items()}, config, tokens), training=False)
    assert [(t, order[e], k) for t, e, k in cases.decisions(after)] == cases.decisions(before)
    np.testing.assert_allclose(after.gate_A, before.gate_A, rtol=1e-12)
    if name != "expert_choice":  # which has ties of its own, between tokens
        level, _ = forward((x_TD, {key: 0 * w for key, w in weights.items()}, config, tokens), training=False)
        np.testing.assert_array_equal(level.expert_A, np.arange(config.top_k)[level.rank_A])


@each_mode
@each_router
def test_replay_takes_over_which_token_goes_where_and_changes_no_number_of_the_same_input(name, training):
    for case in every_k(name):
        first, _ = forward(case, training)
        cases.assert_equal(arrays_of(forward(case, training, replay=first)[0]), arrays_of(first))
        turned = (-case[0], *case[1:])
        again, _ = forward(turned, training, replay=first, seed=1)
        assert cases.decisions(again) == cases.decisions(first)
        if name not in cases.SIGHTLESS:
            assert cases.decisions(forward(turned, training, seed=1)[0]) != cases.decisions(first)
            assert (again.gate_A != first.gate_A).any()


@each_router
def test_evaluation_twice_is_equal_to_the_last_bit_and_so_is_training_with_the_same_generator(name):
    """Also if training came between, and with a generator at hand."""
    x_TD, weights, config, tokens = case = case_for(name)
    first, trained, trained_again = (forward(case, training)[0] for training in (False, True, True))
    again, _ = POLICIES[name].forward(x_TD, weights, config, tokens, False, np.random.default_rng(7))
    cases.assert_equal(arrays_of(again), arrays_of(first))
    cases.assert_equal(arrays_of(trained_again), arrays_of(trained))


@each_mode
@each_router
def test_padding_alone_one_token_alone_and_one_expert_alone_are_no_special_case(name, training):
    x_TD, weights, config, tokens = case_for(name)
    r, cache = forward((x_TD, weights, config, replace(tokens, mask_T=np.zeros(2 * S, bool))), training)
    dx_TD, dweights = POLICIES[name].backward(routing.zero_gradient(r), cache)
    assert len(r.token_A) == len(r.gate_A) == 0 and r.prob_TE.shape == (2 * S, E)
    assert not dx_TD.any() and dx_TD.shape == x_TD.shape
    assert {key: dw.shape for key, dw in dweights.items()} == {key: w.shape for key, w in weights.items()}
    assert set(forward((x_TD[:1], weights, config, Tokens.of_batch(np.array([[3]]))), training)[0].token_A) == {0}
    alone, _ = forward(one := case_for(name, n_experts=1, top_k=1), training)
    assert alone.expert_A.tolist() == [0] * 13  # 16 tokens, of which 3 are padding
    logit_T = one[0][MASK_BS.ravel()] @ one[1]["w_router_DE"][:, 0] if name in SIGMOID else np.full(13, np.inf)
    np.testing.assert_allclose(alone.gate_A, 1 / (1 + np.exp(-logit_T)), rtol=1e-12)


def changes_of_the_past(name, training, seed):
    """How many tokens in the first half of a sequence get different experts or gates when the second half changes."""
    (x_TD, weights, config, _), rng = case_for(name, seed), np.random.default_rng([seed, 1])
    ids_T = rng.integers(0, 40, 2 * S)
    other_TD, other_T = x_TD.copy(), ids_T.copy()
    other_TD[S:], other_T[S:] = 2 * rng.normal(size=(S, D)), rng.integers(0, 40, S)
    seen = []
    for vectors_TD, names_T in ((x_TD, ids_T), (other_TD, other_T)):
        r, _ = forward((vectors_TD, weights, config, Tokens.of_batch(names_T[None])), training, seed=seed)
        gate_TE = np.zeros((2 * S, E))
        gate_TE[r.token_A, r.expert_A] = r.gate_A
        seen.append(gate_TE[:S])
    return (~np.isclose(*seen, rtol=1e-12, atol=0)).any(axis=1).sum()


@each_router
def test_the_flags_say_whether_the_future_and_whether_token_numbers_matter(name):
    for training, causal in ((True, POLICIES[name].FACTS.causal), (False, POLICIES[name].FACTS.causal_in_evaluation)):
        assert (sum(changes_of_the_past(name, training, seed) for seed in range(10)) == 0) == causal
    x_TD, weights, config, tokens = case_for(name)
    before, after = (cases.decisions(forward((x_TD, weights, config, replace(tokens, id_T=id_T)), training=False)[0])
                     for id_T in (tokens.id_T, (tokens.id_T + 7) % 40))
    assert (before != after) == POLICIES[name].FACTS.needs_token_ids


@pytest.mark.parametrize("name", [name for name in POLICIES if POLICIES[name].FACTS.causal_in_evaluation])
def test_in_evaluation_a_sequence_in_two_parts_is_routed_as_the_whole(name):
    x_TD, weights, config, _ = case_for(name)
    ids_BS = IDS_BS.reshape(1, -1)
    whole, _ = forward((x_TD, weights, config, Tokens.of_batch(ids_BS)), training=False)
    part, _ = forward((x_TD[:5], weights, config, Tokens.of_batch(ids_BS[:, :5])), training=False)
    rest, _ = forward((x_TD[5:], weights, config, Tokens.of_batch(ids_BS[:, 5:], start=5)), training=False)
    assert [*part.expert_A, *rest.expert_A] == whole.expert_A.tolist()
    np.testing.assert_allclose(np.concatenate([part.gate_A, rest.gate_A]), whole.gate_A, rtol=1e-12)


def test_routers_are_trained_with_the_losses_of_their_papers():
    balance, with_z = dict(balance=0.01), dict(balance=0.01, z=0.001)
    assert {name: policy.FACTS.losses for name, policy in POLICIES.items() if policy.FACTS.losses} == {
        "softmax_topk": with_z, "switch": balance, "noisy_topk": dict(importance=0.1, load=0.1), "gshard": balance,
        "st_moe": with_z, "sigmoid_bias": dict(sequence=0.0001)}


@each_router
def test_a_policy_takes_what_the_layer_passes(name):
    arguments = ["x_TD", "weights", "config", "tokens", "training", "rng", "replay"]
    assert list(inspect.signature(POLICIES[name].forward).parameters)[:7] == arguments
    assert list(inspect.signature(POLICIES[name].backward).parameters) == ["grad", "cache"]
