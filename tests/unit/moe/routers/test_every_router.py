"""What every router promises, whatever its policy; and whether its flags tell the truth about the future."""

import inspect
from dataclasses import replace

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe.routers import POLICIES, ROUTERS
from minimoe.moe.routing import RoutingGrad, Tokens
from minimoe.parameters import Weight

B, S, D, E = 2, 8, 6, 5
T = B * S
MASK_BS = np.arange(S) < [[S], [S - 3]]

each_router = pytest.mark.parametrize("name", POLICIES)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
each_choice = pytest.mark.parametrize(("name", "top_k"), [
    (name, top_k) for name, policy in POLICIES.items()
    for top_k in ([policy.FACTS.top_k] if policy.FACTS.top_k else [1, 2, E])])


def config_for(name, **options):
    options = {"n_experts": E, "top_k": ROUTERS[name].FACTS.top_k or 2} | options
    return ModelConfig(vocab_size=40, d_model=D, n_heads=1, router=name, **options)


def case_for(name, seed=0, dtype=np.float64, **options):
    """x_TD, weights, config and Tokens with padding."""
    rng, config = np.random.default_rng(seed), config_for(name, **options)
    weights = {key: rng.normal(size=w.shape).astype(dtype)
               for key, w in POLICIES[name].weights(config, 1.0).items()}
    ids_BS = rng.integers(0, 40, (B, S))
    return rng.normal(size=(T, D)).astype(dtype), weights, config, Tokens.of_batch(ids_BS, MASK_BS)


def forward(case, training, replay=None, seed=0):
    """A Routing, cache.  Without a generator in evaluation: nothing may be left to chance there."""
    x_TD, weights, config, batch = case
    rng = np.random.default_rng(seed) if training else None
    return POLICIES[config.router].forward(x_TD, weights, config, batch, training, rng, replay)


def pull_for(r, seed=0):
    """A random RoutingGrad, of the type of the Routing."""
    rng = np.random.default_rng(seed)
    shapes = r.gate_A.shape, *(r.prob_TE.shape,) * 3
    return RoutingGrad(*(rng.normal(size=shape).astype(r.prob_TE.dtype) for shape in shapes))


def decisions(r):
    return list(zip(r.token_A.tolist(), r.expert_A.tolist(), r.rank_A.tolist(), strict=True))


def arrays_of(r):
    chance = {} if r.chance_TE is None else {"chance_TE": r.chance_TE}
    return {name: getattr(r, name) for name in (
        "token_A", "expert_A", "rank_A", "gate_A", "slot_A", "kept_A", "logit_TE", "prob_TE")} | chance


@each_router
def test_the_policy_has_what_the_layer_asks_for(name):
    policy = POLICIES[name]
    arguments = ["x_TD", "weights", "config", "tokens", "training", "rng", "replay"]
    assert list(inspect.signature(policy.forward).parameters)[:7] == arguments
    assert list(inspect.signature(policy.backward).parameters) == ["grad", "cache"]
    assert all(isinstance(weight, Weight) for weight in policy.weights(config_for(name), 1.0).values())


@each_mode
@each_choice
def test_padding_gets_no_assignment_and_real_tokens_that_choose_get_one(name, top_k, training):
    case = case_for(name, top_k=top_k)
    r, _ = forward(case, training)
    assert r.tokens is case[3]
    assert r.mask_T[r.token_A].all()
    if name != "expert_choice":
        assert set(r.token_A) == set(np.flatnonzero(r.mask_T))


@each_mode
@each_choice
def test_the_experts_of_a_token_are_distinct_and_ranked_from_zero_without_a_gap(name, top_k, training):
    r, _ = forward(case_for(name, top_k=top_k), training)
    for t in range(T):
        mine = r.token_A == t
        assert len(set(r.expert_A[mine])) == mine.sum() <= (E if name == "expert_choice" else top_k)
        assert r.rank_A[mine].tolist() == list(range(mine.sum()))


@each_mode
@each_choice
def test_assignments_stand_token_by_token_are_all_kept_and_have_no_queue_yet(name, top_k, training):
    r, _ = forward(case_for(name, top_k=top_k), training)
    assert (np.diff(r.token_A) >= 0).all()
    assert r.kept_A.all() and not r.slot_A.any() and r.capacity is None


@each_mode
@each_choice
def test_probabilities_sum_to_one_and_gates_are_not_negative(name, top_k, training):
    r, _ = forward(case_for(name, top_k=top_k), training)
    np.testing.assert_allclose(r.prob_TE.sum(axis=1), 1, rtol=1e-13)
    assert (r.gate_A > 0).all() and (r.gate_A <= 1).all()


@pytest.mark.parametrize("name", [name for name in POLICIES if POLICIES[name].weights(config_for(name), 1.0)
                                  and name != "expert_choice"])
def test_equal_scores_go_to_the_experts_with_the_lowest_numbers(name):
    """Zeros for tokens.  Expert choice has its own ties, between tokens."""
    _, weights, config, batch = case_for(name)
    weights = weights | {key: np.zeros_like(w) for key, w in weights.items() if key == "bias_E"}
    r, _ = forward((np.zeros((T, D)), weights, config, batch), training=False)
    np.testing.assert_array_equal(r.expert_A, np.arange(config.top_k)[r.rank_A])


@each_mode
@each_router
def test_float32_stays_float32(name, training):
    r, cache = forward(case_for(name, dtype=np.float32), training)
    dx_TD, dweights = POLICIES[name].backward(pull_for(r), cache)
    floats = {key: array.dtype for key, array in (arrays_of(r) | dweights | {"dx_TD": dx_TD}).items()
              if key[-2:] != "_A" or key == "gate_A"}
    assert floats == dict.fromkeys(floats, np.float32)
    assert all(getattr(r, key).dtype.kind == "i" for key in ("token_A", "expert_A", "rank_A", "slot_A"))


@each_mode
@each_choice
def test_replay_takes_over_who_goes_where(name, top_k, training):
    case = case_for(name, top_k=top_k)
    first, _ = forward(case, training)
    turned = (-case[0], *case[1:])
    again, _ = forward(turned, training, replay=first, seed=1)
    assert decisions(again) == decisions(first)
    if name not in ("hash", "random", "uniform"):
        assert decisions(forward(turned, training, seed=1)[0]) != decisions(first)
        assert (again.gate_A != first.gate_A).any()


@each_mode
@each_choice
def test_replay_of_the_same_input_changes_no_number(name, top_k, training):
    case = case_for(name, top_k=top_k)
    first, _ = forward(case, training)
    again, _ = forward(case, training, replay=first)
    for key, array in arrays_of(first).items():
        np.testing.assert_array_equal(arrays_of(again)[key], array, err_msg=key)


@each_mode
@each_router
def test_nothing_passed_in_is_changed_and_backward_can_be_called_twice(name, training):
    case = case_for(name)
    r, _ = forward(case, training)
    grad, (_, _, _, batch) = pull_for(r), case
    for array in (case[0], *case[1].values(), batch.mask_T, batch.sequence_T, batch.position_T, batch.id_T, *grad):
        array.flags.writeable = False
    _, cache = forward(case, training)
    (dx_TD, dweights), (dx_again_TD, dweights_again) = (POLICIES[name].backward(grad, cache) for _ in range(2))
    np.testing.assert_array_equal(dx_again_TD, dx_TD)
    assert dweights_again.keys() == dweights.keys()
    for key, array in dweights.items():
        np.testing.assert_array_equal(dweights_again[key], array, err_msg=key)


@each_router
def test_backward_gives_a_gradient_of_the_shape_of_each_weight(name):
    x_TD, weights, _, _ = case = case_for(name)
    r, cache = forward(case, training=True)
    dx_TD, dweights = POLICIES[name].backward(pull_for(r), cache)
    assert dx_TD.shape == x_TD.shape
    assert {key: array.shape for key, array in dweights.items()} == {key: w.shape for key, w in weights.items()}


@each_choice
def test_evaluation_twice_is_equal_to_the_last_bit(name, top_k):
    """Also if training came between, and with a generator at hand."""
    x_TD, weights, config, batch = case = case_for(name, top_k=top_k)
    first, _ = forward(case, training=False)
    forward(case, training=True)
    again, _ = POLICIES[name].forward(x_TD, weights, config, batch, False, np.random.default_rng(7))
    for key, array in arrays_of(first).items():
        np.testing.assert_array_equal(arrays_of(again)[key], array, err_msg=key)


@each_router
def test_the_same_generator_makes_the_same_training(name):
    case = case_for(name)
    first, again = (forward(case, training=True)[0] for _ in range(2))
    for key, array in arrays_of(first).items():
        np.testing.assert_array_equal(arrays_of(again)[key], array, err_msg=key)


@each_mode
@each_router
def test_a_batch_of_padding_has_no_assignments(name, training):
    x_TD, weights, config, batch = case_for(name)
    r, cache = forward((x_TD, weights, config, replace(batch, mask_T=np.zeros(T, bool))), training)
    assert len(r.token_A) == len(r.gate_A) == 0 and r.prob_TE.shape == (T, E)
    nothing = RoutingGrad(r.gate_A, *(np.zeros((T, E)) for _ in range(3)))
    assert not POLICIES[name].backward(nothing, cache)[0].any()


@each_mode
@each_router
def test_one_token_alone_and_one_expert_alone_are_no_special_case(name, training):
    x_TD, weights, config, _ = case_for(name)
    one = Tokens.of_batch(np.array([[3]]))
    r, _ = forward((x_TD[:1], weights, config, one), training)
    assert set(r.token_A) == {0}
    r, _ = forward(case_for(name, n_experts=1, top_k=1), training)
    assert r.expert_A.tolist() == [0] * 13  # 16 tokens, of which 3 are padding


def changes_of_the_past(name, training, seed):
    """How many of the first half's tokens in a sequence get other experts or gates when the second half is another."""
    x_TD, weights, config, _ = case_for(name, seed)
    rng, half = np.random.default_rng([seed, 1]), T // 2
    ids_T = rng.integers(0, 40, T)
    other_TD, other_T = x_TD.copy(), ids_T.copy()
    other_TD[half:], other_T[half:] = 2 * rng.normal(size=(half, D)), rng.integers(0, 40, half)
    seen = []
    for vectors_TD, names_T in ((x_TD, ids_T), (other_TD, other_T)):
        r, _ = forward((vectors_TD, weights, config, Tokens.of_batch(names_T[None])), training, seed=seed)
        gate_TE = np.zeros((T, E))
        gate_TE[r.token_A, r.expert_A] = r.gate_A
        seen.append(gate_TE[:half])
    return (~np.isclose(*seen, rtol=1e-12, atol=0)).any(axis=1).sum()


@each_mode
@each_router
def test_the_flags_say_whether_the_future_decides_with(name, training):
    """The second half of a sequence is exchanged, and the noise is the same."""
    causal = POLICIES[name].FACTS.causal if training else POLICIES[name].FACTS.causal_in_evaluation
    changes = sum(changes_of_the_past(name, training, seed) for seed in range(10))
    assert (changes == 0) == causal


@each_router
def test_the_flag_says_whether_token_numbers_matter(name):
    x_TD, weights, config, batch = case_for(name)
    renamed = replace(batch, id_T=(batch.id_T + 7) % 40)
    before, after = (decisions(forward((x_TD, weights, config, b), training=False)[0]) for b in (batch, renamed))
    assert (before != after) == POLICIES[name].FACTS.needs_token_ids


@pytest.mark.parametrize("name", [name for name in POLICIES if POLICIES[name].FACTS.causal_in_evaluation])
def test_in_evaluation_a_text_is_routed_as_it_will_be_when_it_goes_on(name):
    x_TD, weights, config, batch = case_for(name)
    ids_BS = batch.id_T[None]
    whole, _ = forward((x_TD, weights, config, Tokens.of_batch(ids_BS)), training=False)
    for t in (1, 5):
        part, _ = forward((x_TD[:t], weights, config, Tokens.of_batch(ids_BS[:, :t])), training=False)
        rest, _ = forward((x_TD[t:], weights, config, Tokens.of_batch(ids_BS[:, t:], start=t)), training=False)
        first = whole.token_A < t
        assert decisions(part) == decisions(whole)[:first.sum()]
        np.testing.assert_array_equal(rest.expert_A, whole.expert_A[~first])
        np.testing.assert_allclose(np.concatenate([part.gate_A, rest.gate_A]), whole.gate_A, rtol=1e-12)
