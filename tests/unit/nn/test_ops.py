"""Each operation by hand, against a slow loop and by the complex step, and at the limits of floating point."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimoe import parameters
from minimoe.moe import experts, gates, soft
from minimoe.moe.routers import sinkhorn
from minimoe.nn import attention, normal, ops
from tests import cases

T, D, E, F, V = 11, 5, 4, 6, 7
TOKENS_T = np.array([3, 0, 3, 5, 1, 3, 0, 2, 5, 5, 1])  # some twice, some three times, 4 and 6 never
WEIGHT_T = np.arange(T) / 55  # 0 + 1 + ... + 10 = 55; the first token counts nothing
LOG3 = math.log(3)

each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def cross_entropy(logit_TV):
    return ops.cross_entropy_forward(logit_TV, TOKENS_T, WEIGHT_T)


def rmsnorm(x_TD, gain_D):
    return ops.rmsnorm_forward(x_TD, gain_D, 1e-2)


PAIRS = {
    "linear": (ops.linear_forward, ops.linear_backward, [(T, D), (D, F)]),
    "softmax": (ops.softmax_forward, ops.softmax_backward, [(T, E)]),
    "sigmoid": (ops.sigmoid_forward, ops.sigmoid_backward, [(T, E)]),
    "log_sigmoid": (ops.log_sigmoid_forward, ops.log_sigmoid_backward, [(T, E)]),
    "softplus": (ops.softplus_forward, ops.softplus_backward, [(T, E)]),
    "rmsnorm": (rmsnorm, ops.rmsnorm_backward, [(T, D), (D,)]),
    "silu_gate": (ops.silu_gate_forward, ops.silu_gate_backward, [(T, F), (T, F)]),
    "swiglu": (ops.swiglu_forward, ops.swiglu_backward, [(T, D), (D, F), (D, F), (F, D)]),
    "embedding": (lambda w_VD: ops.embedding_forward(TOKENS_T, w_VD), ops.embedding_backward, [(V, D)]),
    "cross_entropy": (cross_entropy, ops.cross_entropy_backward, [(T, V)]),
}


def arrays_of(name):
    """Random arguments for a pair."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) for shape in PAIRS[name][2]]


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def dot(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True))


def slow_swiglu(x_D, w_gate_DF, w_up_DF, w_down_FD):
    gate_F, up_F = [dot(x_D, w) for w in w_gate_DF.T], [dot(x_D, w) for w in w_up_DF.T]
    return [dot([z * sigmoid(z) * up for z, up in zip(gate_F, up_F, strict=True)], w) for w in w_down_FD.T]


SLOW = {
    "linear": lambda x_TD, w_DF: [[dot(x, w) for w in w_DF.T] for x in x_TD],
    "softmax": lambda x_TE: [cases.softmax(x_E) for x_E in x_TE],
    "sigmoid": lambda x_TE: np.vectorize(sigmoid)(x_TE),
    "log_sigmoid": lambda x_TE: np.vectorize(lambda x: -math.log1p(math.exp(-x)))(x_TE),
    "softplus": lambda x_TE: np.vectorize(lambda x: math.log1p(math.exp(x)))(x_TE),
    "rmsnorm": lambda x_TD, gain_D: [[gain * x / math.sqrt(dot(x_D, x_D) / D + 1e-2) for x, gain in
                                      zip(x_D, gain_D, strict=True)] for x_D in x_TD],
    "silu_gate": lambda gate_TF, up_TF: np.vectorize(lambda z, up: z * sigmoid(z) * up)(gate_TF, up_TF),
    "swiglu": lambda x_TD, *weights: [slow_swiglu(x_D, *weights) for x_D in x_TD],
    "cross_entropy": lambda logit_TV: sum(
        weight * (math.log(sum(math.exp(x) for x in logit_V)) - logit_V[target])
        for logit_V, target, weight in zip(logit_TV, TOKENS_T, WEIGHT_T, strict=True)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_gradient_is_that_of_the_complex_step(name):
    forward, backward, _ = PAIRS[name]
    cases.assert_gradient(forward, backward, **{f"argument {i}": array for i, array in enumerate(arrays_of(name))})


@pytest.mark.parametrize("name", [*PAIRS, "normal_cdf", "gates", "shares", "experts", "unit", "plan", "attend", "rope",
                                  "split", "merge"])
def test_whole_numbers_count_as_floating_point_and_what_is_no_number_is_refused(name):
    """An array of integers truncates what it is filled with, and products of 8-bit integers overflow."""
    expert_TK, cut = np.array([[0, 2], [1, 3], [2, 1]]), np.array([2, 1, 0, 0])
    forward, backward, shapes = (PAIRS | {
        "normal_cdf": (normal.normal_cdf_forward, normal.normal_cdf_backward, [(T, E)]),
        "gates": (lambda x: gates.gates_forward(x * x, expert_TK, np.ones(3, bool), False)[::1],
                  lambda dy, cache: gates.gates_backward(dy[-1], cache), [(3, E)]),
        "shares": (lambda x: gates.shares_forward(x, expert_TK, np.ones(3, bool))[::1],
                   lambda dy, cache: gates.shares_backward(dy[-1], cache), [(3, E)]),
        "attend": (attention.attend_forward, attention.attend_backward, [(1, 2, 3, 4)] * 3),
        "rope": (attention.rope_forward, attention.rope_backward, [(1, 2, 3, 4), (3, 4), (3, 4)]),
        "split": (attention.split_heads_forward, attention.split_heads_backward, [(1, 2, 3), (3, 2, 4)]),
        "merge": (attention.merge_heads_forward, attention.merge_heads_backward, [(1, 2, 3, 4), (2, 4, 5)]),
        "experts": (lambda x, *w: experts.experts_forward(x, dict(zip(experts.NAMES, w, strict=True)), cut),
                    experts.experts_backward, [(3, D), (4, D, F), (4, D, F), (4, F, D)]),
        "unit": (soft.unit_forward, soft.unit_backward, [(T, D)]),
        "plan": (lambda x: (sinkhorn.plan(x), None), lambda dy, cache: dy, [(T, E)])})[name]
    rng = np.random.default_rng(0)
    whole = [rng.integers(1, 12, shape) for shape in shapes]

    def outcome(arrays):
        y, cache = forward(*arrays)
        return [*parameters.arrays_in(y if isinstance(y, tuple) else [np.asarray(y)]),
                *parameters.arrays_in(backward(y / 2 if not isinstance(y, tuple) else [y[-1] / 2], cache))]

    for dtype in (np.int8, np.int64):
        for got, expected in zip(outcome([a.astype(dtype) for a in whole]), outcome([a.astype(float) for a in whole]),
                                 strict=True):
            np.testing.assert_array_equal(got, expected)
    if name != "gates":
        np.testing.assert_array_equal(outcome([a.tolist() for a in whole])[0], outcome(whole)[0])
        with pytest.raises(ValueError, match="has rows of different lengths: must be an array"):
            forward(*([[1.0], [1.0, 2.0]] for _ in whole))
    for dtype in (bool, object):
        with pytest.raises(ValueError, match=rf"^\w+ has shape .* dtype {np.dtype(dtype)}: must be an array of"):
            forward(*(a.astype(dtype) for a in whole))


@pytest.mark.parametrize("name", SLOW)
def test_the_output_is_that_of_a_loop(name):
    arrays = arrays_of(name)
    np.testing.assert_allclose(PAIRS[name][0](*arrays)[0], SLOW[name](*arrays), rtol=1e-12)


def test_linear_by_hand():
    y, cache = ops.linear_forward(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]]))
    dx, dw = ops.linear_backward(np.array([[1.0, 10.0]]), cache)
    np.testing.assert_array_equal(y, [[13, 16]])  # 1*3 + 2*5, 1*4 + 2*6
    np.testing.assert_array_equal(dx, [[43, 65]])  # 1*3 + 10*4, 1*5 + 10*6
    np.testing.assert_array_equal(dw, [[1, 10], [2, 20]])


def test_softmax_by_hand():
    """exp gives 1 and 3, so p = (1/4, 3/4).  dp = (1, 0): dx = (1/4 (1 - 1/4), 3/4 (0 - 1/4)) = (3/16, -3/16)."""
    p, cache = ops.softmax_forward(np.array([[0, LOG3]]))
    np.testing.assert_allclose(p, [[1 / 4, 3 / 4]], 1e-15)
    np.testing.assert_allclose(ops.softmax_backward(np.array([[1.0, 0.0]]), cache), [[3 / 16, -3 / 16]], 1e-14)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_over_another_axis_is_that_of_the_last_when_axes_are_swapped(axis):
    x = np.random.default_rng(0).normal(size=(3, 4, 5))
    p, cache = ops.softmax_forward(x, axis=axis)
    expected, _ = ops.softmax_forward(x.swapaxes(axis, -1).reshape(-1, x.shape[axis]))
    np.testing.assert_allclose(p.swapaxes(axis, -1).reshape(expected.shape), expected, rtol=1e-15)
    assert cache is p


@each_dtype
def test_softmax_of_huge_scores(dtype):
    """Ties share; a lead of 1e4 takes all; 1e4 added to every score changes nothing; -inf gets exactly nothing."""
    p, cache = ops.softmax_forward(np.array([[1e4, 1e4], [1e4, 0], [-1e4, -1e4], [0, -1e4], [-math.inf, -7]], dtype))
    np.testing.assert_array_equal(p, [[0.5, 0.5], [1, 0], [0.5, 0.5], [1, 0], [0, 1]])
    np.testing.assert_array_equal(ops.softmax_backward(np.ones((5, 2)), cache), 0)  # all equally wanted: no change


def test_sigmoid_by_hand():
    """sigmoid(0) = 1/2, slope 1/4; sigmoid(ln 3) = 3/4 and sigmoid(-ln 3) = 1/4, slopes 3/16."""
    s, cache = ops.sigmoid_forward(np.array([[0, LOG3, -LOG3]]))
    np.testing.assert_allclose(s, [[1 / 2, 3 / 4, 1 / 4]], 1e-15)
    np.testing.assert_allclose(ops.sigmoid_backward(np.array([[1.0, 1.0, 16.0]]), cache), [[1 / 4, 3 / 16, 3]], 1e-15)


def test_softplus_by_hand():
    """log(1 + 1) = ln 2, slope 1/2; log(1 + 3) = ln 4, slope 3/4; log(1 + 1/3) = ln 4/3, slope 1/4.

    Far to the left log(1 + e^x) = e^x, which 1 + e^x has lost.
    """
    y, cache = ops.softplus_forward(np.array([[0, LOG3, -LOG3, -40.0, -700.0]]))
    np.testing.assert_allclose(y, [[math.log(2), math.log(4), math.log(4 / 3), math.exp(-40), math.exp(-700)]], 1e-15)
    slopes = ops.softplus_backward(np.array([[2.0, 4.0, 4.0, 0.0, 0.0]]), cache)
    np.testing.assert_allclose(slopes, [[1, 3, 1, 0, 0]], 1e-15)


@each_dtype
@pytest.mark.parametrize(("name", "values", "slopes"), [
    ("sigmoid", [1, 0, 1, 0], [0, 0, 0, 0]), ("softplus", [1e4, 0, 1e38, 0], [1, 0, 1, 0]),
    ("silu_gate", [1e4, 0, 1e38, 0], [1, 0, 1, 0])])
def test_what_saturates_does_not_overflow(name, values, slopes, dtype):
    """SiLU is far to the right z with slope 1, far to the left 0 with slope 0."""
    forward, backward, shapes = PAIRS[name]
    x, *ones = [np.array([[1e4, -1e4, 1e38, -1e38]], dtype), np.ones((1, 4), dtype)][:len(shapes)]
    y, cache = forward(x, *ones)
    np.testing.assert_array_equal(y, np.array([values], dtype), strict=True)
    dx = backward(np.ones((1, 4), dtype), cache)
    np.testing.assert_array_equal(dx[0] if ones else dx, np.array([slopes], dtype), strict=True)


def test_rmsnorm_by_hand():
    """x = (1, 7): mean square 25, with eps = 11 it is 36, so unit = x / 6 and y = (2/6, 3*7/6).

    dy = (1, 0): dunit = (2, 0), its mean along unit is (2/6)/2 = 1/6,
    dx = (2 - 1/36, -7/36) / 6 = (71/216, -7/216); dgain = dy * unit = (1/6, 0).  Of nothing it makes nothing.
    """
    assert not ops.rmsnorm_forward(np.zeros((1, 2)), np.ones(2), 1e-5)[0].any()
    y, cache = ops.rmsnorm_forward(np.array([[1.0, 7.0]]), np.array([2.0, 3.0]), 11)
    dx, dgain = ops.rmsnorm_backward(np.array([[1.0, 0.0]]), cache)
    np.testing.assert_allclose(y, [[1 / 3, 7 / 2]], 1e-15)
    np.testing.assert_allclose(dx, [[71 / 216, -7 / 216]], 1e-14)
    np.testing.assert_allclose(dgain, [1 / 6, 0], 1e-15)


def test_silu_gate_by_hand():
    """sigmoid(0) = 1/2 and sigmoid(ln 3) = 3/4.

    h = z sigmoid(z) up = 0 and ln 3 * 3/4 * 4; slope = s + z s (1 - s) = 1/2 and 3/4 + ln 3 * 3/16.
    """
    h, cache = ops.silu_gate_forward(np.array([[0, LOG3]]), np.array([[4.0, 4.0]]))
    dgate, dup = ops.silu_gate_backward(np.array([[1.0, 1.0]]), cache)
    np.testing.assert_allclose(h, [[0, 3 * LOG3]], 1e-15)
    np.testing.assert_allclose(dgate, [[4 * 1 / 2, 4 * (3 / 4 + LOG3 * 3 / 16)]], 1e-15)
    np.testing.assert_allclose(dup, [[0, 3 / 4 * LOG3]], 1e-15)


def test_swiglu_writes_gradients_of_its_weights_where_it_is_told_to():
    """The same numbers, into what `out` gives and nowhere else: one expert of three, over what was there before."""
    x_TD, *weights = arrays_of("swiglu")
    y_TD, cache = ops.swiglu_forward(x_TD, *weights)
    dx_TD, *expected = ops.swiglu_backward(y_TD, cache)
    stacked = [np.full((3, *w.shape), np.nan) for w in weights]
    dx_too_TD, *returned = ops.swiglu_backward(y_TD, cache, out=[dw[1] for dw in stacked])
    np.testing.assert_array_equal(dx_too_TD, dx_TD)
    for dw, same, there in zip(expected, returned, stacked, strict=True):
        np.testing.assert_array_equal(there[1], dw)
        assert np.shares_memory(same, there) and np.isnan(there[::2]).all()


def test_embedding_by_hand():
    """Token 1 occurs twice, so its row gets 1 + 100; token 0 never occurs, so its row gets nothing."""
    x, cache = ops.embedding_forward(np.array([1, 2, 1]), np.array([[5.0], [6.0], [7.0]]))
    np.testing.assert_array_equal(x, [[6], [7], [6]])
    np.testing.assert_array_equal(ops.embedding_backward(np.array([[1.0], [10.0], [100.0]]), cache), [[0], [101], [10]])


@cases.FEW
@given(st.lists(st.integers(0, V - 1), min_size=1, max_size=30))
def test_the_embedding_gradient_counts_every_occurrence(tokens):
    dx_TD, slow_VD = np.random.default_rng(0).normal(size=(len(tokens), D)), np.zeros((V, D))
    np.add.at(slow_VD, tokens, dx_TD)
    dw_VD = ops.embedding_backward(dx_TD, ops.embedding_forward(np.array(tokens), np.zeros((V, D)))[1])
    np.testing.assert_allclose(dw_VD, slow_VD, atol=1e-13)


def test_cross_entropy_by_hand():
    """p = (1/4, 3/4) in both rows.  Targets 0 and 1 with weights 1/4 and 3/4: 1/4 ln 4 + 3/4 ln 4/3.

    Gradient: weight (p - target) = 1/4 (-3/4, 3/4) and 3/4 (1/4, -1/4), and with dloss = 2 twice that.
    Uniform logits: log V, whatever the target.
    """
    logit_TV = np.log([[1.0, 3.0], [1.0, 3.0]])
    loss, cache = ops.cross_entropy_forward(logit_TV, np.array([0, 1]), np.array([1 / 4, 3 / 4]))
    assert math.isclose(loss, math.log(4) / 4 + 3 / 4 * math.log(4 / 3), rel_tol=1e-15)
    expected = np.array([[-3 / 8, 3 / 8], [3 / 8, -3 / 8]])
    np.testing.assert_allclose(ops.cross_entropy_backward(2.0, cache), expected, 1e-14)
    for target in (0, V - 1):
        loss, _ = ops.cross_entropy_forward(np.full((1, V), 3.0), np.array([target]), np.ones(1))
        assert math.isclose(loss, math.log(V), rel_tol=1e-15)


@each_dtype
def test_cross_entropy_of_huge_logits(dtype):
    """Confident and right costs 0, confident and wrong costs the lead, 1e4; the gradients are 0 and (1, -1), halved."""
    logit_TV, weight_T = np.array([[1e4, 0], [0, -1e4]], dtype), np.array([0.5, 0.5], dtype)
    loss, cache = ops.cross_entropy_forward(logit_TV, np.array([0, 1]), weight_T)
    assert loss == 5000
    np.testing.assert_array_equal(ops.cross_entropy_backward(1.0, cache), [[0, 0], [0.5, -0.5]])


def test_a_token_of_weight_zero_has_exactly_no_loss_and_no_gradient():
    (logit_TV,) = arrays_of("cross_entropy")
    loss, cache = cross_entropy(logit_TV)
    assert loss == cross_entropy(np.concatenate([logit_TV[:1] + np.arange(V), logit_TV[1:]]))[0]
    dlogit_TV = ops.cross_entropy_backward(1.0, cache)
    assert not dlogit_TV[0].any() and dlogit_TV[1:].all()
