"""A batch in groups: against loops over its groups, by hand, by the complex step; and in which order groups run."""

import re
import weakref
from dataclasses import replace

import numpy as np
import pytest

from minimoe import batches, gradcheck, model, moe, parameters
from minimoe.config import ModelConfig
from minimoe.gradcheck import numeric
from minimoe.training.threads import workers
from tests import cases

CONFIG = ModelConfig(vocab_size=32, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_hidden=6, n_experts=4, top_k=2,
                     max_sequence=8, balance_coef=0.5, z_coef=0.3)
GLOBAL = replace(CONFIG, global_balance=True)
TOKENS_BS, TARGETS_BS = np.random.default_rng(0).integers(0, 32, (2, 6, 7))
UNEVEN_BS = np.arange(7) < np.array([[7], [6], [2], [1], [3], [1]])
"""The first half of the batch has 15 real tokens, the second 5."""

each_way = pytest.mark.parametrize("config", [CONFIG, GLOBAL], ids=["each by itself", "global balance"])


def gradients(config, n=3, look=None, each=map):
    """The result of `batches.gradients` for the batch in n groups."""
    groups = batches.cut(TOKENS_BS, TARGETS_BS, n)
    return batches.gradients(gradcheck.random_params(config), groups, config, np.random.default_rng(0), look, each=each)


def in_groups(config, n, mask_BS=None):
    """Losses and gradients of the batch in n groups."""
    return batches.loss_and_grads(gradcheck.random_params(config), TOKENS_BS, TARGETS_BS, config, mask_BS,
                                  rng=np.random.default_rng(0), groups=n)


def one_by_one(config, n):
    """The oracle: (Losses, routings, grads) of each group as a separate batch, with the random stream of that group."""
    params = gradcheck.random_params(config)
    for group, rng in zip(batches.cut(TOKENS_BS, TARGETS_BS, n), batches.streams(np.random.default_rng(0), n),
                          strict=True):
        (losses, routings), cache = model.objective_forward(params, group.tokens_BS, group.targets_BS, config,
                                                            training=True, rng=rng)
        yield losses, routings, model.objective_backward(1.0, cache)


@pytest.fixture
def calls(monkeypatch):
    """The calls of forward and backward from now on, in order."""
    letters = []

    def spied(letter, function):
        return lambda *arguments, **options: letters.append(letter) or function(*arguments, **options)

    monkeypatch.setattr(model, "model_forward", spied("F", model.model_forward))
    monkeypatch.setattr(model, "objective_backward", spied("B", model.objective_backward))
    return letters


@pytest.mark.parametrize("fields", [
    dict(), dict(capacity_factor=0.7), dict(router="expert_choice"), dict(capacity_factor=0.7, drop_order="random"),
    dict(router="noisy_topk", importance_coef=0.4, load_coef=0.6)], ids=str)
@pytest.mark.parametrize("n", [1, 2, 6])
def test_groups_are_the_mean_of_batches_by_themselves(fields, n):
    config = replace(CONFIG, **fields)
    losses, routings, grads = zip(*one_by_one(config, n), strict=True)
    result, (mean, mean_grads) = gradients(config, n), in_groups(config, n)
    assert result.losses == list(losses)
    for mine, expected in zip(result.routings, routings, strict=True):
        assert gradcheck.flips(mine, expected) == 0
    cases.assert_same_gradients(result.grads, {name: sum(each[name] for each in grads) / n for name in grads[0]})
    cases.assert_same_gradients(mean_grads, result.grads, 1e-15)
    for name in ("ce", "total"):
        np.testing.assert_allclose(getattr(mean, name), np.mean([getattr(part, name) for part in losses]), rtol=1e-13)
    assert mean.auxiliary.keys() == losses[0].auxiliary.keys()
    for name, value in mean.auxiliary.items():
        np.testing.assert_allclose(value, np.mean([part.auxiliary[name] for part in losses]), rtol=1e-13)


def test_capacity_and_balance_of_each_group_by_hand():
    """Token e goes to expert e with a probability of 1: attention adds nothing, a token is a one-hot vector of root
    mean square 1/2, so its logits are 200 and 0.

    The first sequence wants expert 0 alone, the second all four.  Of a group of 4 tokens an expert takes
    1 * 4 / 4 = 1: 3 of the first are dropped and none of the second.  Of both together it takes 8 / 4 = 2, both from
    the first, and so the second loses one too.

    E * sum f P with f = P: 4 * 1 for the first sequence, 4 * 4 / 16 = 1 for the second, 2.5 on the mean.  Of both
    together the shares are 5, 1, 1 and 1 eighths: 4 * (25 + 3) / 64 = 1.75, also as a balance over all groups.
    """
    config = ModelConfig(vocab_size=4, d_model=4, n_layers=1, n_heads=2, d_hidden=3, n_experts=4, top_k=1,
                         capacity_factor=1.0, max_sequence=4, balance_coef=0.5, z_coef=0.0)
    params = gradcheck.random_params(config) | {
        "embed.w_VD": np.eye(4), "layers.0.attention.w_o_HPD": np.zeros((2, 2, 4)), "layers.0.moe.gain_D": np.ones(4),
        "layers.0.moe.w_router_DE": 100 * np.eye(4)}
    tokens_BS = np.array([[0, 0, 0, 0], [0, 1, 2, 3]])
    apart, together = (batches.gradients(params, batches.cut(tokens_BS, tokens_BS, n), config).routings for n in (2, 1))
    assert [r.capacity for (r,) in apart] == [1, 1] and together[0][0].capacity == 2
    assert [r.kept_A.tolist() for (r,) in apart] == [[True, False, False, False], [True] * 4]
    assert together[0][0].kept_A.tolist() == [True, True, False, False, False, True, True, True]
    for expected, n, is_global in ((2.5, 2, False), (1.75, 1, False), (1.75, 2, True)):
        losses, _ = batches.loss_and_grads(params, tokens_BS, tokens_BS, replace(config, global_balance=is_global),
                                           groups=n)
        np.testing.assert_allclose([losses.balance, losses.total - losses.ce], [expected, 0.5 * expected], rtol=1e-13)


def test_with_global_balance_groups_are_one_big_batch_and_without_each_has_to_be_even_by_itself():
    (losses, grads), (apart, apart_grads), (big, expected) = (
        in_groups(config, n) for config, n in ((GLOBAL, 3), (CONFIG, 3), (CONFIG, 1)))
    cases.assert_same_gradients(grads, expected)
    np.testing.assert_allclose([losses.ce, losses.total, *losses.auxiliary.values()],
                               [big.ce, big.total, *big.auxiliary.values()], rtol=1e-12)
    router = "layers.0.moe.w_router_DE"
    assert gradcheck.error(apart_grads[router], expected[router]) > 1e-3
    assert apart.balance > big.balance and abs(apart.ce - big.ce) < 1e-12


def test_the_load_of_all_counts_every_assignment_once_though_some_groups_have_more():
    """GShard leaves second choices out at random: a mean of the loads would give each group the same weight."""
    losses, all_routings, *_ = gradients(replace(GLOBAL, router="gshard", balance_first=False))
    assert len({len(routings[0].token_A) for routings in all_routings}) > 1
    count_LE = sum(np.array([r.count_E for r in routings]) for routings in all_routings)
    means_LE = np.mean([[r.load_E for r in routings] for routings in all_routings], axis=0)
    for part, routings in zip(losses, all_routings, strict=True):
        by_count, by_mean = (np.mean([4 * load_LE[i] @ r.prob_TE.mean(axis=0) for i, r in enumerate(routings)])
                             for load_LE in (count_LE / count_LE.sum(axis=1, keepdims=True), means_LE))
        np.testing.assert_allclose(part.balance, by_count, rtol=1e-12)
        assert abs(by_mean - by_count) > 1e-6


def test_without_a_balance_loss_both_ways_draw_the_same_chances_which_differ_from_group_to_group():
    config = replace(CONFIG, router="noisy_topk", balance_coef=0, importance_coef=0.4, load_coef=0.6)
    (losses, _, _, grads), (same, _, _, same_grads) = (gradients(replace(config, global_balance=is_global))
                                                       for is_global in (False, True))
    assert [part.total for part in losses] == [part.total for part in same]
    cases.assert_same_gradients(grads, same_grads, 1e-15)
    (first, _), *_, (last, _) = gradients(replace(CONFIG, router="random")).routings
    assert first.expert_A.tolist() != last.expert_A.tolist()
    with pytest.raises(ValueError, match="rng"):
        batches.loss_and_grads(gradcheck.random_params(CONFIG), TOKENS_BS, TARGETS_BS, replace(
            CONFIG, capacity_factor=1.0, drop_order="random"), groups=2)


@pytest.mark.parametrize(("config", "order", "kept"), [(CONFIG, "FBFBFB", [0, 0, 0]), (GLOBAL, "FFFBBB", [0, 1, 2])],
                         ids=["each by itself", "global balance"])
def test_each_backward_follows_its_forward_unless_the_balance_is_global(config, order, kept, calls, monkeypatch):
    """Else no forward pass is kept when the next one begins: watched are what attention and the losses have made."""
    forward, watched, alive = model.model_forward, [], []

    def spy(*arguments, **options):
        alive.append(sum(any(array() is not None for array in arrays) for arrays in watched))
        (logit_TV, routings), cache = forward(*arguments, **options)
        inner = [array for array in parameters.arrays_in(cache.blocks[0].attention)
                 if not any(np.shares_memory(array, param) for param in arguments[0].values())]
        watched.append([weakref.ref(array) for array in (logit_TV, *inner)])
        return (logit_TV, routings), cache

    monkeypatch.setattr(model, "model_forward", spy)
    gradients(config)
    assert "".join(calls) == order and alive == kept and len(watched[0]) > 3


@each_way
def test_a_look_comes_before_each_backward_with_what_the_backward_gets(config, calls):
    seen = []

    def look(losses, cache):
        calls.append("L")
        seen.append((losses, cache))
        return len(seen)

    losses, _, looks, _ = gradients(config, 2, look)
    assert looks == [1, 2] and "".join(calls).replace("F", "") == "LBLB"
    assert [part for part, _ in seen] == losses
    assert all(model.objective_backward(1.0, cache).keys() == model.weights(config).keys() for _, cache in seen)


def test_a_look_that_raises_ends_the_step_before_the_backward(calls):
    with pytest.raises(ZeroDivisionError):
        gradients(CONFIG, look=lambda losses, cache: 1 / 0)
    assert calls == ["F"]


@pytest.mark.parametrize("fields", [dict(router="soft"), dict(first_dense_layers=2), dict(first_dense_layers=1)],
                         ids=str)
def test_global_balance_asks_for_nothing_where_there_is_no_router(fields):
    config = replace(GLOBAL, **fields)
    _, routings, _, grads = gradients(config)
    assert [len(of_group) for of_group in routings] == [len(config.moe_layers)] * 3
    assert grads.keys() == model.weights(config).keys()


def test_a_batch_is_cut_into_groups_in_order():
    groups = batches.cut(TOKENS_BS, TARGETS_BS, 3, UNEVEN_BS)
    for whole_BS, name in ((TOKENS_BS, "tokens_BS"), (TARGETS_BS, "targets_BS"), (UNEVEN_BS, "mask_BS")):
        np.testing.assert_array_equal([getattr(group, name) for group in groups], whole_BS.reshape(3, 2, 7))
    assert [group.n_real for group in groups] == [20 / 3] * 3
    assert [group.n_real for group in batches.cut(TOKENS_BS, TARGETS_BS, np.int64(2))] == [21, 21]
    assert [group.n_real for group in batches.cut(TOKENS_BS, TARGETS_BS, 2, 0 * UNEVEN_BS)] == [1 / 2] * 2


@pytest.mark.parametrize("n", [-1, 0, 4, 12, 2.0, None, True])
def test_groups_that_do_not_divide_the_batch_are_refused(n):
    with pytest.raises(ValueError, match=re.escape(f"groups = {n!r}: must be a whole number that divides the 6 seq")):
        in_groups(CONFIG, n)


def test_streams_are_made_of_the_generator_alone_and_differ():
    first, again, other = ([rng.random() for rng in batches.streams(np.random.default_rng(seed), 3)]
                           for seed in (0, 0, 1))
    assert first == again and len({*first, *other}) == 6
    assert batches.streams(None, 2) == [None, None]


def objective(config):
    """params -> the loss of two groups, one thing at a time: ce and z as means over all real tokens, of the balance the
    mean over groups of E sum f P, or with global balance E sum f P of all; others as means over groups."""
    halves, real_T = (slice(0, 3), slice(3, 6)), UNEVEN_BS.ravel()

    def balance(routings, mask_T, count_E):
        mean_E = np.concatenate([r.prob_TE for r in routings])[mask_T].mean(axis=0)
        return 4 * (count_E / count_E.sum()) @ mean_E

    def count(r):
        return np.bincount(r.expert_A[r.rank_A == 0] if config.router == "gshard" else r.expert_A, minlength=4)

    def total(params):
        passed = [model.model_forward(params, TOKENS_BS[half], config, UNEVEN_BS[half], training=True, rng=rng)[0]
                  for half, rng in zip(halves, batches.streams(np.random.default_rng(0), 2), strict=True)]
        logit_TV = np.concatenate([logit_TV for logit_TV, _ in passed])
        p_TV = np.exp(logit_TV - logit_TV.real.max(axis=1, keepdims=True))
        p_TV /= p_TV.sum(axis=1, keepdims=True)
        result = -np.log(p_TV[np.arange(len(p_TV)), TARGETS_BS.ravel()])[real_T].sum() / 20
        for layer in zip(*(routings for _, routings in passed), strict=True):
            lse_T = np.log(np.exp(np.concatenate([r.logit_TE for r in layer])).sum(axis=1))
            result += config.loss_coefs["z"] * (lse_T ** 2)[real_T].sum() / 20 / 2
            if config.global_balance:
                result += config.loss_coefs["balance"] * balance(layer, real_T, sum(map(count, layer))) / 2
            for r in layer:
                values = moe.losses.auxiliary_forward(r, config)[0] | {"z": 0, "balance": 0}
                if not config.global_balance:
                    values["balance"] = balance([r], r.mask_T, count(r))
                result += sum(config.loss_coefs[name] * value for name, value in values.items()) / 4
        return result
    return total


@pytest.mark.parametrize("fields", [
    dict(), dict(global_balance=True), dict(global_balance=True, router="gshard"),
    dict(router="noisy_topk", load_coef=0.6, importance_coef=0.4)], ids=str)
def test_ce_is_a_mean_over_all_real_tokens_and_the_gradient_that_of_the_complex_step(fields):
    """Not the mean of the means of the groups."""
    config = replace(CONFIG, capacity_factor=0.8, **fields)
    result, grads = in_groups(config, 2, UNEVEN_BS)
    params, total = gradcheck.random_params(config), objective(config)
    np.testing.assert_allclose(result.total, total(params), rtol=1e-13)
    report = numeric.compare_directions("two groups", total, params, grads, count=2)
    assert report.ok and grads.keys() == params.keys(), report


@pytest.mark.parametrize("fields", [
    dict(), dict(router="sigmoid_bias", renormalize=False), dict(balance_first=True, entropy_coef=0.2)], ids=str)
def test_with_global_balance_a_batch_with_padding_may_be_cut_anywhere(fields):
    """Sequences of 7, 6, 2, 1, 3 and 1 tokens: groups of 6 and of 1 tokens, say.  One big batch is one group."""
    config = replace(GLOBAL, **fields)
    (whole, expected), *cuts = [in_groups(config, n, UNEVEN_BS) for n in (1, 2, 3, 6)]
    for result, grads in cuts:
        np.testing.assert_allclose([result.ce, result.total, *result.auxiliary.values()],
                                   [whole.ce, whole.total, *whole.auxiliary.values()], rtol=1e-13)
        cases.assert_same_gradients(grads, expected)


def test_with_global_balance_micro_batches_drawn_apart_are_one_big_batch_too():
    """Two micro-batches of 15 and 5 real tokens, each cut in three."""
    groups = [group for half in (slice(0, 3), slice(3, 6))
              for group in batches.cut(TOKENS_BS[half], TARGETS_BS[half], 3, UNEVEN_BS[half])]
    parts = batches.gradients(gradcheck.random_params(GLOBAL), groups, GLOBAL, np.random.default_rng(0)).losses
    whole, _ = in_groups(GLOBAL, 1, UNEVEN_BS)
    np.testing.assert_allclose(batches.mean_losses(parts).balance, whole.balance, rtol=1e-13)


@each_way
def test_the_parts_come_in_the_order_of_the_groups_on_any_number_of_threads(config):
    alone = gradients(config, 6, look=lambda losses, _: losses.ce)
    with workers(3) as each:
        together = gradients(config, 6, look=lambda losses, _: losses.ce, each=each)
    assert together.losses == alone.losses and len(set(alone.looks)) == 6
    assert together.looks == alone.looks == [part.ce for part in alone.losses]
    cases.assert_equal(together.grads, alone.grads)


def test_one_group_is_the_default():
    """Three sequences could not be cut in two."""
    batch = gradcheck.random_params(CONFIG), TOKENS_BS[:3], TARGETS_BS[:3], CONFIG
    assert batches.loss_and_grads(*batch)[0] == batches.loss_and_grads(*batch, groups=1)[0]
