"""Copies answer as the dense model does and leave the router without a slope; parts add up to it; means undo copies."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import batches, gradcheck, model, parameters
from minimoe.config import ModelConfig
from minimoe.gradcheck import numeric
from minimoe.moe import dense
from minimoe.nn import ops
from minimoe.sparsity import distillation, merging, upcycling
from minimoe.training import loop
from tests import cases, small

ONE = ModelConfig(vocab_size=7, d_model=12, n_layers=2, n_heads=2, d_hidden=8, n_experts=1, top_k=1, max_sequence=9)
DENSE = {"one expert": ONE, "dense layers": replace(ONE, first_dense_layers=2, d_dense=8),
         "shared": replace(ONE, n_shared_experts=1), "mixed": replace(ONE, n_layers=3, moe_every=2, d_dense=6)}
MANY = replace(ONE, n_experts=4, top_k=2)
START = model.init_params(ONE)
COPIES, PAIRS = upcycling.upcycle(START, ONE, 4, 2, 0), dict.fromkeys(range(2), [0, 1, 0, 1])
TOKENS_BS, TARGETS_BS = np.random.default_rng(0).integers(0, 7, (2, 4, 9))


def logits(params, config):
    return model.forward(params, TOKENS_BS, config)[0]


def task_grads(params, config):
    """Gradients of the cross-entropy alone."""
    return batches.loss_and_grads(params, TOKENS_BS, TARGETS_BS, replace(config, balance_coef=0.0, z_coef=0.0))[1]


@pytest.mark.parametrize("name", DENSE)
def test_an_upcycled_model_answers_as_the_dense_one_and_the_task_does_not_pull_its_router(name):
    config = DENSE[name]
    params = gradcheck.random_params(config)
    moe, many = upcycling.upcycle(params, config, 4, 2, seed=5)
    model.check_params(moe, many)
    np.testing.assert_allclose(logits(moe, many), logits(params, config), rtol=0, atol=1e-12)
    before, grads = task_grads(params, config), task_grads(moe, many)
    for i in many.moe_layers:
        assert np.abs(grads[f"layers.{i}.moe.w_router_DE"]).max() < 1e-15
        own = ("dense.w_up_DJ", 0) if name == "dense layers" else ("moe.w_up_EDF", 1)
        expected = before[f"layers.{i}.{own[0]}"]
        np.testing.assert_allclose(grads[f"layers.{i}.moe.w_up_EDF"].sum(axis=0), expected[0] if own[1] else expected,
                                   rtol=0, atol=1e-14)
        counts = model.forward(moe, TOKENS_BS, many)[1][0].count_E
        assert (counts > 0).sum() > 2  # tokens do not all go the same way
    balanced = batches.loss_and_grads(moe, TOKENS_BS, TARGETS_BS, many)[1]
    assert np.abs(balanced[f"layers.{many.moe_layers[0]}.moe.w_router_DE"]).max() > 1e-5  # the balance loss does


def test_raw_gates_would_scale_the_output_by_their_sum():
    params = gradcheck.random_params(ONE)
    moe, config = upcycling.upcycle(params, ONE, 4, 2, seed=0)
    raw = replace(config, renormalize=False, n_layers=1)
    first = {name: array for name, array in moe.items() if not name.startswith("layers.1.")}
    (_, (routing,)), cache = model.model_forward(first, TOKENS_BS, raw)
    (_, _), whole = model.model_forward(first, TOKENS_BS, replace(raw, renormalize=True))
    top_T = np.sort(routing.prob_TE, axis=1)[:, 2:].sum(axis=1)
    out, one = (sum_of_combined(c) for c in (cache, whole))
    np.testing.assert_allclose(out, top_T[:, None] * one, rtol=0, atol=1e-12)


def sum_of_combined(cache):
    """What the experts of a one-layer model added to the stream."""
    last, combined = cache.blocks[0].feed_forward_norm, cache.norm
    return combined.unit_TD / combined.scale_T1 - last.unit_TD / last.scale_T1


def test_noise_and_dropped_neurons_break_the_symmetry():
    params = gradcheck.random_params(ONE)
    for option in (dict(noise=0.1), dict(dropped=0.5)):
        moe, config = upcycling.upcycle(params, ONE, 4, 2, 0, **option)
        w_EDF, w_DF = moe["layers.1.moe.w_up_EDF"], params["layers.1.moe.w_up_EDF"][0]
        assert np.abs(task_grads(moe, config)["layers.1.moe.w_router_DE"]).max() > 1e-6
        changed_EF = (w_EDF != w_DF).any(axis=1)
        assert (changed_EF.sum(axis=1) == (8 if "noise" in option else 4)).all()
        same_EF = (moe["layers.1.moe.w_down_EFD"] == params["layers.1.moe.w_down_EFD"][0]).all(axis=2)
        np.testing.assert_array_equal(same_EF, ~changed_EF)  # a neuron is drawn anew in all its matrices
        assert 0.05 < (w_EDF - w_DF).std() / w_DF.std() < (0.2 if "noise" in option else 2)


def test_the_parts_of_a_network_add_up_to_it_and_like_neurons_stay_together():
    config = replace(ONE, first_dense_layers=2, d_dense=8)
    params = gradcheck.random_params(config)
    moe, whole = upcycling.moefy(params, config, 4, 4, TOKENS_BS, seed=0, spread=1e-13)
    assert (whole.d_hidden, parameters.count(moe) - parameters.count(params)) == (2, 2 * 12 * 4)  # the routers alone
    np.testing.assert_allclose(logits(moe, whole), logits(params, config), rtol=0, atol=1e-11)
    _, one = upcycling.moefy(params, config, 4, 1, TOKENS_BS, seed=0)
    assert one.top_k == 1
    rng = np.random.default_rng(0)
    kind = rng.permutation(np.repeat(np.arange(3), 5))
    rows = rng.normal(size=(3, 20))[kind] * rng.uniform(0.5, 2, (15, 1)) + 0.05 * rng.normal(size=(15, 20))
    cluster = upcycling.balanced_clusters(rows, 3, np.random.default_rng(1))
    assert len({*zip(kind.tolist(), cluster.tolist(), strict=True)}) == 3  # one cluster for each kind


def test_one_part_per_token_puts_out_what_that_part_of_the_network_does():
    config = replace(ONE, n_layers=1, first_dense_layers=1, d_dense=8)
    params = gradcheck.random_params(config)
    moe, sparse = upcycling.moefy(params, config, 2, 1, TOKENS_BS, seed=0, spread=1e-9)
    (_, (routing,)), cache = model.model_forward(moe, TOKENS_BS, sparse)
    x_TD = cache.blocks[0].feed_forward_norm.unit_TD * params["layers.0.dense.gain_D"]
    weights = parameters.scope(moe, "layers.0.moe.")
    each_TED = np.array([[cases.expert(x_D, weights, e) / 2 for e in range(2)] for x_D in x_TD])
    whole_TD, _ = dense.dense_forward(x_TD, parameters.scope(params, "layers.0.dense."))
    np.testing.assert_allclose(each_TED.sum(axis=1), whole_TD, rtol=0, atol=1e-12)
    np.testing.assert_allclose(sum_of_combined(cache), each_TED[np.arange(36), routing.expert_A], rtol=0, atol=1e-8)
    length_TE = np.linalg.norm(each_TED, axis=2)
    wanted_TE = length_TE - length_TE.mean(axis=1, keepdims=True)
    residual = wanted_TE - routing.logit_TE * (wanted_TE * routing.logit_TE).sum() / (routing.logit_TE ** 2).sum()
    np.testing.assert_allclose(x_TD.T @ residual, 0, atol=1e-10)  # least squares


def test_merging_undoes_copies_and_weighs_by_load():
    params = gradcheck.random_params(ONE)
    moe, config = upcycling.upcycle(params, ONE, 4, 2, seed=0)
    for groups in ([0, 1, 1, 0], [0, 0, 0, 0]):
        fewer, merged = merging.merge(moe, config, dict.fromkeys(range(2), groups))
        model.check_params(fewer, merged)
        np.testing.assert_allclose(logits(fewer, merged), logits(params, ONE), rtol=0, atol=1e-12)
    assert (merged.n_experts, merged.top_k) == (1, 1)
    params = gradcheck.random_params(config)
    loads = dict.fromkeys(range(2), [0.3, 0.5, 0.2, 0])
    fewer, _ = merging.merge(params, config, dict.fromkeys(range(2), [0, 1, 0, 1]), loads)
    for name, axis in (("w_router_DE", 1), ("w_down_EFD", 0)):
        w = np.moveaxis(params[f"layers.1.moe.{name}"], axis, 0)
        expected = np.stack([0.6 * w[0] + 0.4 * w[2], w[1]])  # .3 and .2 of .5; .5 and 0
        np.testing.assert_allclose(np.moveaxis(fewer[f"layers.1.moe.{name}"], axis, 0), expected, rtol=1e-12)
    w_DE = np.array([[1., 0, 2, 1, 0], [0, 1, 0.1, 1.1, 0]])  # the last is as far from both
    assert merging.similar_groups({"w_router_DE": w_DE}, [3, 5, 1, 1, 1], 2).tolist() == [0, 1, 0, 1, 0]


def test_the_gradient_of_distillation_and_its_zero():
    rng = np.random.default_rng(0)
    teacher_TV, weight_T = rng.normal(size=(5, 7)), rng.dirichlet(np.ones(5))
    for temperature in (1.0, 2.5):
        cases.assert_gradient(lambda x, t=temperature: distillation.distillation_forward(x, teacher_TV, weight_T, t),
                              distillation.distillation_backward, logit_TV=rng.normal(size=(5, 7)))
    loss, cache = distillation.distillation_forward(teacher_TV + 3, teacher_TV, weight_T)
    assert abs(loss) < 1e-15 and np.abs(distillation.distillation_backward(1.0, cache)).max() < 1e-15
    # by hand: the student says 1/2, 1/2, the teacher 1/4, 3/4: log 2 - entropy
    loss, _ = distillation.distillation_forward(np.zeros((1, 2)), np.log([[1., 3]]), np.ones(1))
    assert loss == pytest.approx(np.log(2) + 0.25 * np.log(0.25) + 0.75 * np.log(0.75), rel=1e-12)


def test_the_whole_gradient_of_a_student_in_groups_and_a_run_with_a_teacher():
    student, teacher = gradcheck.random_params(ONE), gradcheck.random_params(MANY, seed=1)
    groups = batches.cut(TOKENS_BS, TARGETS_BS, 2)
    extra = distillation.teacher(teacher, MANY, weight=0.7, temperature=3.0)
    found = batches.gradients(student, groups, ONE, extra=extra)

    def total(params):
        logit_TV = model.model_forward(params, TOKENS_BS, ONE)[0][0]
        ce, _ = ops.cross_entropy_forward(logit_TV, TARGETS_BS.ravel(), np.full(36, 1 / 36))
        teacher_TV = model.model_forward(teacher, TOKENS_BS, MANY)[0][0]
        return ce + 0.7 * distillation.distillation_forward(logit_TV, teacher_TV, np.full(36, 1 / 36), 3.0)[0]

    report = numeric.compare_directions("student", total, student, found.grads, count=2)
    assert report.ok, report
    assert np.mean([losses.total for losses in found.losses]) == pytest.approx(total(student), rel=1e-12)
    alone, taught = small.new(small.DENSE, n_steps=15), small.new(small.DENSE, n_steps=15)
    moe = small.trained(n_steps=15)
    by = distillation.teacher(moe.params, moe.model_config, weight=5.0)
    loop.train(alone, small.CORPUS)
    loop.train(taught, small.CORPUS, extra=by)
    batch = small.first_batches(1)[0][0]
    group, = batches.cut(batch.tokens_BS, batch.targets_BS, 1)
    far, near = (by(group, model.model_forward(state.params, batch.tokens_BS, small.DENSE)[0][0])[0]
                 for state in (alone, taught))
    assert near < far
    with pytest.raises(ValueError, match="vocab_size = 7: the student knows 32 tokens"):
        extra(group._replace(tokens_BS=TOKENS_BS), np.zeros((36, 32)))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: upcycling.upcycle(START, ONE, 4, 1, 0), "top_k = 1: must be 2 or more: a single gate"),
    (lambda: upcycling.upcycle(START, ONE, 4.5, 2, 0), "n_experts = 4.5: must be a whole number"),
    (lambda: upcycling.upcycle(START, ONE, 4, 5, 0), "top_k = 5: a token cannot have more"),
    (lambda: upcycling.upcycle(START, ONE, 4, 2, 0, dropped=1), r"dropped = 1: must be in \[0, 1\)"),
    (lambda: upcycling.upcycle(*COPIES, 8, 2, 0), "n_experts = 4: the model"),
    *((lambda n=n: upcycling.moefy(START, ONE, n, 2, TOKENS_BS, 0), f"n_experts = {n}: must ") for n in (0, 3)),
    (lambda: merging.similar_groups({"w_router_DE": TOKENS_BS}, [1], 99), "n_groups = 99: must be"),
    (lambda: merging.merge(*COPIES, {0: [0, 0, 1, 1]}), "groups have from 0 to 2 experts left in a layer"),
    (lambda: merging.merge(*COPIES, {0: 3, 1: 2}), r"groups of layer 0 has shape \(\)"),
    (lambda: merging.merge(*COPIES, {}), "groups have from 0 to 0 experts"),
    (lambda: merging.merge(*COPIES, PAIRS | {0: [0, 2, 0, 2]}),
     r"groups of layer 0 = \[0, 2, 0, 2\]: must give each of 4 experts a group number"),
    (lambda: merging.merge(*COPIES, PAIRS, {0: [1, 0, 1, 0]}), r"layer 0: no token reached .* of the groups \[1\]"),
    (lambda: merging.merge(*COPIES, PAIRS, {0: [1, -1, 2, 2]}), "loads of layer 0 = .*: must be 0 or more"),
    (lambda: distillation.teacher(START, ONE, weight=-1), "weight = -1: must be a finite number of 0 or more"),
])
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
