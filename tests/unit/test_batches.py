"""A batch in groups: against loops over its groups, by hand, by the complex step; the same bits on any threads."""

import re
import weakref
from dataclasses import replace

import numpy as np
import pytest

from minimoe import batches, gradcheck, model, parameters
from minimoe.config import ModelConfig, TrainConfig
from minimoe.gradcheck import numeric
from minimoe.moe import routers
from minimoe.training import corpus, data, loop
from minimoe.training.threads import workers

CONFIG = ModelConfig(vocab_size=32, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_hidden=6, n_experts=4, top_k=2,
                     max_sequence=8, balance_coef=0.5, z_coef=0.3)
GLOBAL = replace(CONFIG, global_balance=True)
TRAINING = TrainConfig(n_steps=4, batch=6, sequence=8, groups=3, accumulate=2, warmup_steps=2, learning_rate=0.02,
                       eval_every=2, eval_batches=4, record_every=2)
TEXT = data.build(corpus.clusters(length=300), 8)

each_way = pytest.mark.parametrize("config", [CONFIG, GLOBAL], ids=["each by itself", "global balance"])


def batch_of(sequences=6):
    """Random tokens_BS and targets_BS."""
    return np.random.default_rng(0).integers(0, 32, (2, sequences, 7))


def parts_of(n=3, sequences=2):
    """A batch in n groups of some sequences each."""
    return batches.cut(*batch_of(n * sequences), n)


def gradients(config, parts, look=None, params=None, each=map):
    params = gradcheck.random_params(config) if params is None else params
    return batches.gradients(params, parts, config, np.random.default_rng(0), look, each=each)


def in_groups(config, n, mask_BS=None):
    """losses and grads of a batch in n groups."""
    return batches.loss_and_grads(gradcheck.random_params(config), *batch_of(), config, mask_BS,
                                 rng=np.random.default_rng(0), groups=n)


def one_by_one(config, parts):
    """The oracle: (Losses, routings, grads) of each group as a batch by itself, with the stream of that group."""
    params = gradcheck.random_params(config)
    for part, rng in zip(parts, batches.streams(np.random.default_rng(0), len(parts)), strict=True):
        (losses, routings), cache = model.objective_forward(params, part.tokens_BS, part.targets_BS, config,
                                                            training=True, rng=rng)
        yield losses, routings, model.objective_backward(1.0, cache)


def mean_of(dicts):
    return {name: sum(each[name] for each in dicts) / len(dicts) for name in dicts[0]}


def assert_close(left, right, tolerance=1e-12):
    assert left.keys() == right.keys()
    assert {name: error for name in left if not (error := gradcheck.error(left[name], right[name])) < tolerance} == {}


def noted(monkeypatch):
    """The calls of forward and backward from now on, in order."""
    calls = []

    def spied(letter, function):
        def spy(*arguments, **options):
            calls.append(letter)
            return function(*arguments, **options)
        return spy

    monkeypatch.setattr(model, "model_forward", spied("F", model.model_forward))
    monkeypatch.setattr(model, "objective_backward", spied("B", model.objective_backward))
    return calls


@each_way
def test_one_group_is_the_whole_batch(config):
    losses, grads = in_groups(config, 1)
    ((expected, routings, expected_grads),) = one_by_one(config, parts_of(1, 6))
    assert losses == expected and len(routings) == 2
    assert_close(grads, expected_grads, 1e-15)


ROUTED = {
    "dropless": CONFIG,
    "with capacity": replace(CONFIG, capacity_factor=0.7),
    "expert choice": replace(CONFIG, router="expert_choice"),
    "noisy": replace(CONFIG, router="noisy_topk", importance_coef=0.4, load_coef=0.6),
    "drop by lot": replace(CONFIG, capacity_factor=0.7, drop_order="random"),
}


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("case", ROUTED)
def test_groups_are_the_mean_of_batches_by_themselves(case, n):
    config = ROUTED[case]
    losses, routings, grads = zip(*one_by_one(config, parts_of(n, 6 // n)), strict=True)
    result, (mean, mean_grads) = gradients(config, parts_of(n, 6 // n)), in_groups(config, n)
    assert result.losses == list(losses)
    for mine, expected in zip(result.routings, routings, strict=True):
        assert gradcheck.flips(mine, expected) == 0
    assert_close(result.grads, mean_of(grads))
    assert_close(mean_grads, result.grads, 1e-15)
    for name in ("ce", "total"):
        np.testing.assert_allclose(getattr(mean, name), np.mean([getattr(part, name) for part in losses]), rtol=1e-13)
    assert mean.auxiliary.keys() == losses[0].auxiliary.keys()
    for name, value in mean.auxiliary.items():
        np.testing.assert_allclose(value, np.mean([part.auxiliary[name] for part in losses]), rtol=1e-13)


def by_token():
    """A model whose router sends token e to expert e, with a probability of 1, and the parameters that do it.

    Attention adds nothing; a token is a one-hot vector, of root mean square 1/2: logits are 200 and 0.
    """
    config = ModelConfig(vocab_size=4, d_model=4, n_layers=1, n_heads=2, d_hidden=3, n_experts=4, top_k=1,
                         capacity_factor=1.0, max_sequence=4, balance_coef=0.5, z_coef=0.0)
    params = gradcheck.random_params(config)
    params |= {"embed.w_VD": np.eye(4), "layers.0.attention.w_o_HPD": np.zeros((2, 2, 4)),
               "layers.0.moe.gain_D": np.ones(4), "layers.0.moe.w_router_DE": 100 * np.eye(4)}
    return config, params


def test_capacity_is_that_of_each_group():
    """The first sequence wants expert 0 alone, the second all four.  Of a group of 4 tokens an expert takes
    1 * 4 / 4 = 1: 3 of the first are dropped and none of the second.  Of both together it takes 8 / 4 = 2, both from
    the first, and so the second loses one too."""
    config, params = by_token()
    tokens_BS = np.array([[0, 0, 0, 0], [0, 1, 2, 3]])
    apart, together = (batches.gradients(params, batches.cut(tokens_BS, tokens_BS, n), config).routings for n in (2, 1))
    assert [r.capacity for (r,) in apart] == [1, 1] and together[0][0].capacity == 2
    assert [r.kept_A.tolist() for (r,) in apart] == [[True, False, False, False], [True] * 4]
    assert together[0][0].kept_A.tolist() == [True, True, False, False, False, True, True, True]


def test_balance_is_that_of_each_group():
    """E * sum f P with f = P: 4 * 1 for the first sequence, 4 * 4 / 16 = 1 for the second, 2.5 on the mean.  Of both
    together the shares are 5, 1, 1 and 1 eighths: 4 * (25 + 3) / 64 = 1.75, also as a balance over all groups."""
    config, params = by_token()
    tokens_BS = np.array([[0, 0, 0, 0], [0, 1, 2, 3]])
    for expected, n, is_global in ((2.5, 2, False), (1.75, 1, False), (1.75, 2, True)):
        losses, _ = batches.loss_and_grads(params, tokens_BS, tokens_BS, replace(config, global_balance=is_global),
                                          groups=n)
        np.testing.assert_allclose(losses.balance, expected, rtol=1e-14)
        np.testing.assert_allclose(losses.total, losses.ce + 0.5 * expected, rtol=1e-14)


def test_with_global_balance_they_are_those_of_one_big_batch():
    losses, grads = in_groups(GLOBAL, 3)
    big, expected = in_groups(CONFIG, 1)
    assert_close(grads, expected)
    for name in ("ce", "balance", "z", "total"):
        np.testing.assert_allclose(getattr(losses, name), getattr(big, name), rtol=1e-12)


def test_without_it_they_are_not_since_each_group_has_to_be_even_by_itself():
    losses, grads = in_groups(CONFIG, 3)
    big, expected = in_groups(CONFIG, 1)
    router = "layers.0.moe.w_router_DE"
    assert gradcheck.error(grads[router], expected[router]) > 1e-3
    assert losses.balance > big.balance
    np.testing.assert_allclose(losses.ce, big.ce, rtol=1e-12)


def test_the_load_of_all_counts_every_assignment_once_though_some_groups_have_more():
    """GShard leaves second choices out at random: a mean of the loads would give each group the same weight."""
    losses, all_routings, *_ = gradients(replace(GLOBAL, router="gshard"), parts_of())
    assert len({len(routings[0].token_A) for routings in all_routings}) > 1
    count_LE = sum(np.array([r.count_E for r in routings]) for routings in all_routings)
    all_LE = count_LE / count_LE.sum(axis=1, keepdims=True)
    means_LE = np.mean([[r.load_E for r in routings] for routings in all_routings], axis=0)
    for part, routings in zip(losses, all_routings, strict=True):
        by_count, by_mean = (np.mean([4 * load_LE[i] @ r.prob_TE.mean(axis=0) for i, r in enumerate(routings)])
                             for load_LE in (all_LE, means_LE))
        np.testing.assert_allclose(part.balance, by_count, rtol=1e-12)
        assert abs(by_mean - by_count) > 1e-6


def test_without_a_balance_loss_both_ways_are_the_same_and_draw_the_same_chances():
    config = replace(CONFIG, router="noisy_topk", balance_coef=0, importance_coef=0.4, load_coef=0.6)
    (losses, routings, _, grads), (same, same_routings, _, same_grads) = (
        gradients(replace(config, global_balance=is_global), parts_of()) for is_global in (False, True))
    assert [part.total for part in losses] == [part.total for part in same]
    for of_group, same_of_group in zip(routings, same_routings, strict=True):
        assert [r.expert_A.tolist() for r in of_group] == [r.expert_A.tolist() for r in same_of_group]
    assert_close(grads, same_grads, 1e-15)


def test_groups_have_different_chances():
    config, (part,) = replace(CONFIG, router="random"), parts_of(1)
    (first, _), (second, _) = gradients(config, [part, part]).routings
    assert first.expert_A.tolist() != second.expert_A.tolist()


def test_each_backward_follows_its_forward(monkeypatch):
    calls = noted(monkeypatch)
    gradients(CONFIG, parts_of())
    assert "".join(calls) == "FBFBFB"


def test_global_balance_has_to_see_all_before_the_first_backward(monkeypatch):
    calls = noted(monkeypatch)
    gradients(GLOBAL, parts_of())
    assert "".join(calls) == "FFFBBB"


@pytest.mark.parametrize(("config", "expected"), [(CONFIG, [0, 0, 0, 0]), (GLOBAL, [0, 1, 2, 3])],
                         ids=["each by itself", "global balance"])
def test_no_forward_pass_is_kept_when_the_next_one_begins_unless_the_balance_is_global(config, expected, monkeypatch):
    """Watched are the logits, and what attention in the first block and the cross-entropy have kept."""
    forward, losses_forward, watched, alive = model.model_forward, model.losses_forward, [], []

    def spy(*arguments, **options):
        alive.append(sum(any(array() is not None for array in arrays) for arrays in watched))
        (logit_TV, routings), cache = forward(*arguments, **options)
        inner = [array for array in parameters.arrays_in(cache.blocks[0].attention)
                 if not any(np.shares_memory(array, param) for param in arguments[0].values())]
        assert inner
        watched.append([weakref.ref(array) for array in (logit_TV, *inner)])
        return (logit_TV, routings), cache

    def spy_losses(*arguments, **options):
        losses, cache = losses_forward(*arguments, **options)
        inner = [array for array in parameters.arrays_in(cache[1]) if array.ndim == 2]
        assert inner
        watched.append([weakref.ref(array) for array in inner])
        return losses, cache

    monkeypatch.setattr(model, "model_forward", spy)
    monkeypatch.setattr(model, "losses_forward", spy_losses)
    gradients(config, parts_of(4))
    assert alive == expected


@each_way
def test_a_look_comes_before_each_backward_with_what_the_backward_gets(config, monkeypatch):
    calls, seen = noted(monkeypatch), []

    def look(losses, cache):
        calls.append("L")
        seen.append((losses, cache))
        return len(seen)

    losses, _, looks, _ = gradients(config, parts_of(2), look)
    assert looks == [1, 2]
    assert "".join(calls).replace("F", "") == "LBLB"
    assert [part for part, _ in seen] == losses
    assert all(grad.shape for _, cache in seen for grad in model.objective_backward(1.0, cache).values())


def test_a_look_that_raises_ends_the_step_before_the_backward(monkeypatch):
    calls = noted(monkeypatch)

    def look(losses, cache):
        raise loop.Diverged("no")

    with pytest.raises(loop.Diverged):
        gradients(CONFIG, parts_of(), look)
    assert calls == ["F"]


@pytest.mark.parametrize("fields", [dict(router="soft"), dict(first_dense_layers=2), dict(n_experts=1, top_k=1),
                                    dict(first_dense_layers=1)], ids=str)
def test_global_balance_asks_for_nothing_where_there_is_no_router(fields):
    config = replace(GLOBAL, **fields)
    _, routings, _, grads = gradients(config, parts_of())
    assert [len(of_group) for of_group in routings] == [len(config.moe_layers)] * 3
    assert grads.keys() == model.weights(config).keys()


@each_way
def test_nothing_that_was_passed_in_is_changed(config):
    params, parts = gradcheck.random_params(config), parts_of()
    for array in (*params.values(), *parameters.arrays_in(parts)):
        array.flags.writeable = False
    gradients(config, parts, params=params)


def test_a_batch_is_cut_into_groups_in_order():
    tokens_BS, targets_BS = batch_of(6)
    mask_BS = np.arange(7) < np.array([[7], [7], [3], [2], [1], [1]])
    parts = batches.cut(tokens_BS, targets_BS, 3, mask_BS)
    for whole_BS, name in ((tokens_BS, "tokens_BS"), (targets_BS, "targets_BS"), (mask_BS, "mask_BS")):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), whole_BS)
        assert {getattr(part, name).shape for part in parts} == {(2, 7)}
    assert [part.n_real for part in parts] == [7] * 3  # 14 + 5 + 2 real tokens, in three groups
    assert [part.n_real for part in batches.cut(tokens_BS, targets_BS, 2)] == [21, 21]


@pytest.mark.parametrize("n", [-1, 0, 4, 7, 12, 2.0, "2", None, True])
def test_groups_that_do_not_divide_the_batch_are_refused(n):
    with pytest.raises(ValueError, match=f"^groups = {n!r}: must be a whole number that divides the 6 sequences"):
        in_groups(CONFIG, n)


@pytest.mark.parametrize(("fields", "message"), [
    (dict(groups=0), "groups = 0: must be a whole number, 1 or more"),
    (dict(groups=2.0), "groups = 2.0: must be a whole number, 1 or more"),
    (dict(groups=5, batch=12), "groups = 5: must divide batch = 12"),
    (dict(groups=24, batch=12), "groups = 24: must divide batch = 12")])
def test_a_run_with_groups_that_do_not_divide_its_batch_is_refused(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainConfig(**fields)


def test_streams_are_made_of_the_generator_alone_and_differ():
    first, again, other = (batches.streams(np.random.default_rng(seed), 3) for seed in (0, 0, 1))
    assert batches.streams(None, 2) == [None, None]
    numbers = [[rng.random() for rng in rngs] for rngs in (first, again, other)]
    assert numbers[0] == numbers[1]
    assert len({*numbers[0], *numbers[2]}) == 6


def test_without_a_generator_a_router_that_draws_lots_is_refused():
    config = replace(CONFIG, router="random")
    with pytest.raises(ValueError, match="rng"):
        batches.loss_and_grads(gradcheck.random_params(config), *batch_of(), config, groups=2)


REAL_B = np.array([[7], [6], [2], [1], [3], [1]])
UNEVEN_BS = np.arange(7) < REAL_B
"""The first half of the batch has 15 real tokens, the second 5."""


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_the_cross_entropy_is_the_mean_over_all_real_tokens_of_the_batch(n):
    """Not the mean of the means of the groups."""
    tokens_BS, targets_BS = batch_of()
    logits_BSV, _ = model.forward(gradcheck.random_params(CONFIG), tokens_BS, CONFIG, UNEVEN_BS)
    surprises = []
    for b, s in zip(*np.nonzero(UNEVEN_BS), strict=True):
        logit_V = logits_BSV[b, s]
        surprises.append(np.log(np.exp(logit_V).sum()) - logit_V[targets_BS[b, s]])
    losses, _ = in_groups(CONFIG, n, UNEVEN_BS)
    assert len(surprises) == 20
    np.testing.assert_allclose(losses.ce, sum(surprises) / 20, rtol=1e-13)
    np.testing.assert_allclose(losses.total, losses.ce + 0.5 * losses.balance + 0.3 * losses.z, rtol=1e-13)
    assert abs(np.mean([np.mean(surprises[:15]), np.mean(surprises[15:])]) - losses.ce) > 1e-3


def objective(config, mask_BS):
    """params -> ce over all real tokens + the mean over two groups of the weighted losses, one thing at a time."""
    tokens_BS, targets_BS = batch_of()
    real_T = mask_BS.ravel()

    def total(params):
        forward = [model.model_forward(params, tokens_BS[half], config, mask_BS[half], training=True, rng=rng)[0]
                   for half, rng in zip((slice(0, 3), slice(3, 6)), batches.streams(np.random.default_rng(0), 2),
                                        strict=True)]
        logit_TV = np.concatenate([logit_TV for logit_TV, _ in forward])
        p_TV = np.exp(logit_TV - logit_TV.real.max(axis=1, keepdims=True))
        p_TV /= p_TV.sum(axis=1, keepdims=True)
        result = -np.log(p_TV[np.arange(len(p_TV)), targets_BS.ravel()])[real_T].sum() / real_T.sum()
        count_LE = sum(np.array([r.count_E for r in routings]) for _, routings in forward)
        loads = count_LE / count_LE.sum(axis=1, keepdims=True) if config.global_balance and len(count_LE) else None
        for half, (logit_TV, routings) in zip((slice(0, 3), slice(3, 6)), forward, strict=True):
            losses, _ = model.losses_forward(logit_TV, routings, targets_BS[half], config, mask_BS[half], loads)
            result += (losses.total - losses.ce) / 2
        return result
    return total


@pytest.mark.parametrize("mask_BS", [np.ones((6, 7), bool), UNEVEN_BS], ids=["all real", "masked"])
@pytest.mark.parametrize("is_global", [False, True], ids=["each by itself", "global balance"])
@pytest.mark.parametrize("router", routers.ROUTERS)
def test_the_gradient_of_two_groups_is_that_of_the_complex_step(router, is_global, mask_BS):
    room = {} if routers.ROUTERS[router].FACTS.soft else dict(capacity_factor=0.8)
    load = dict(load_coef=0.6, importance_coef=0.4) if router == "noisy_topk" else {}
    config = replace(CONFIG, router=router, top_k=routers.ROUTERS[router].FACTS.top_k or 2, global_balance=is_global,
                     **room, **load)
    losses, grads = in_groups(config, 2, mask_BS)
    params, total = gradcheck.random_params(config), objective(config, mask_BS)
    np.testing.assert_allclose(losses.total, total(params), rtol=1e-13)
    report = numeric.compare_directions(f"{router} in 2 groups", total, params, grads, count=2)
    assert report.ok and report.worst < 1e-12, report
    assert grads.keys() == params.keys()


THREADED = {"dropless": CONFIG, "global balance": GLOBAL,
            "noisy": replace(CONFIG, router="noisy_topk", capacity_factor=0.8),
            "drop by lot": replace(CONFIG, capacity_factor=0.7, drop_order="random"),
            "bias": replace(CONFIG, router="sigmoid_bias", balance_coef=None)}


def bits(state):
    """All that a run has made, but for the time that it took, in a form that == compares bit for bit."""
    history = {name: values for name, values in state.history.items() if name != "seconds"}
    trees = enumerate((state.params, *state.moments, history))
    return {(i, name): np.asarray(array).tobytes() for i, tree in trees for name, array in tree.items()}


@pytest.mark.parametrize("case", THREADED)
def test_a_run_is_the_same_bit_for_bit_on_any_number_of_threads_and_when_it_is_run_again(case):
    runs = [loop.train(loop.new_state(THREADED[case], TRAINING, TEXT), TEXT, threads=n) for n in (1, 1, 2, 3, 3)]
    first, *others = (bits(state) for state in runs)
    assert first and all(other == first for other in others)


@each_way
def test_the_parts_come_in_the_order_of_the_groups_on_any_number_of_threads(config):
    alone = gradients(config, parts_of(6, 1), look=lambda losses, _: losses.ce)
    with workers(3) as each:
        together = gradients(config, parts_of(6, 1), look=lambda losses, _: losses.ce, each=each)
    assert together.losses == alone.losses and len(set(alone.looks)) == 6
    assert together.looks == alone.looks == [part.ce for part in alone.losses]
    for name in alone.grads:
        np.testing.assert_array_equal(together.grads[name], alone.grads[name])
