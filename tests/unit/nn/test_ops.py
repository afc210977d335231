"""Each operation by hand, against a slow loop and by the complex step, and where floating point comes to its limits."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimoe import gradcheck
from minimoe.nn import normal, ops

T, D, E, F, V = 11, 5, 4, 6, 7
TOKENS_T = np.array([3, 0, 3, 5, 1, 3, 0, 2, 5, 5, 1])  # some twice, some three times, 4 and 6 never
WEIGHT_T = np.arange(T) / 55  # 0 + 1 + ... + 10 = 55; the first token counts nothing

each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def embedding(w_VD):
    return ops.embedding_forward(TOKENS_T, w_VD)


def cross_entropy(logit_TV):
    return ops.cross_entropy_forward(logit_TV, TOKENS_T, WEIGHT_T.astype(logit_TV.real.dtype))


def rmsnorm(x_TD, gain_D):
    return ops.rmsnorm_forward(x_TD, gain_D, 1e-2)


PAIRS = {
    "linear": (ops.linear_forward, ops.linear_backward, [(T, D), (D, F)]),
    "softmax": (ops.softmax_forward, ops.softmax_backward, [(T, E)]),
    "sigmoid": (ops.sigmoid_forward, ops.sigmoid_backward, [(T, E)]),
    "softplus": (ops.softplus_forward, ops.softplus_backward, [(T, E)]),
    "normal CDF": (normal.normal_cdf_forward, normal.normal_cdf_backward, [(T, E)]),
    "RMSNorm": (rmsnorm, ops.rmsnorm_backward, [(T, D), (D,)]),
    "SiLU gate": (ops.silu_gate_forward, ops.silu_gate_backward, [(T, F), (T, F)]),
    "SwiGLU": (ops.swiglu_forward, ops.swiglu_backward, [(T, D), (D, F), (D, F), (F, D)]),
    "embedding": (embedding, ops.embedding_backward, [(V, D)]),
    "cross-entropy": (cross_entropy, ops.cross_entropy_backward, [(T, V)]),
}


def arrays_of(name, dtype=np.float64):
    """Random arguments for a pair, read-only."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(dtype) for shape in PAIRS[name][2]]
    for array in arrays:
        array.flags.writeable = False
    return arrays


def as_list(gradients):
    return list(gradients) if isinstance(gradients, tuple) else [gradients]


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def phi(z):
    return math.erfc(-z / math.sqrt(2)) / 2


def dot(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True))


def slow_swiglu(x_D, w_gate_DF, w_up_DF, w_down_FD):
    gate_F, up_F = [dot(x_D, w) for w in w_gate_DF.T], [dot(x_D, w) for w in w_up_DF.T]
    h_F = [z * sigmoid(z) * up for z, up in zip(gate_F, up_F, strict=True)]
    return [dot(h_F, w) for w in w_down_FD.T]


@pytest.mark.parametrize("name", PAIRS)
def test_the_gradient_is_that_of_the_complex_step(name):
    forward, backward, _ = PAIRS[name]
    report = gradcheck.check_pair(name, forward, backward, {f"argument {i}": a for i, a in enumerate(arrays_of(name))})
    assert report.ok, report


@each_dtype
@pytest.mark.parametrize("name", PAIRS)
def test_the_dtype_stays(name, dtype):
    forward, backward, _ = PAIRS[name]
    y, cache = forward(*arrays_of(name, dtype))
    assert {y.dtype} | {gradient.dtype for gradient in as_list(backward(y, cache))} == {np.dtype(dtype)}


@pytest.mark.parametrize("name", PAIRS)
def test_backward_can_be_called_twice_and_writes_to_nothing(name):
    forward, backward, _ = PAIRS[name]
    y, cache = forward(*arrays_of(name))
    dy = np.ones_like(y)
    dy.flags.writeable = False
    first = [gradient.copy() for gradient in as_list(backward(dy, cache))]
    for once, twice in zip(first, as_list(backward(dy, cache)), strict=True):
        np.testing.assert_array_equal(once, twice)


def test_linear_by_hand():
    y, cache = ops.linear_forward(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]]))
    dx, dw = ops.linear_backward(np.array([[1.0, 10.0]]), cache)
    np.testing.assert_array_equal(y, [[13, 16]])  # 1*3 + 2*5, 1*4 + 2*6
    np.testing.assert_array_equal(dx, [[43, 65]])  # 1*3 + 10*4, 1*5 + 10*6
    np.testing.assert_array_equal(dw, [[1, 10], [2, 20]])


def test_linear_is_a_dot_product_an_entry():
    x_TD, w_DF = arrays_of("linear")
    np.testing.assert_allclose(ops.linear_forward(x_TD, w_DF)[0], [[dot(x, w) for w in w_DF.T] for x in x_TD], 1e-13)


def test_softmax_by_hand():
    """exp gives 1 and 3, so p = (1/4, 3/4).  dp = (1, 0): dx = (1/4 (1 - 1/4), 3/4 (0 - 1/4)) = (3/16, -3/16)."""
    p, cache = ops.softmax_forward(np.array([[0, math.log(3)]]))
    np.testing.assert_allclose(p, [[1 / 4, 3 / 4]], 1e-15)
    np.testing.assert_allclose(ops.softmax_backward(np.array([[1.0, 0.0]]), cache), [[3 / 16, -3 / 16]], 1e-14)


def test_softmax_against_a_loop():
    (x_TE,) = arrays_of("softmax")
    slow = [[math.exp(x) / sum(math.exp(other) for other in x_E) for x in x_E] for x_E in x_TE]
    np.testing.assert_allclose(ops.softmax_forward(x_TE)[0], slow, 1e-13)


def test_softmax_takes_any_leading_axes():
    x_ABE = np.random.default_rng(0).normal(size=(2, 3, 4))
    np.testing.assert_array_equal(ops.softmax_forward(x_ABE)[0].reshape(6, 4),
                                  ops.softmax_forward(x_ABE.reshape(6, 4))[0])


@pytest.mark.parametrize("axis", [0, 1, 2, -2])
def test_softmax_over_another_axis_is_that_of_the_last_when_axes_are_swapped(axis):
    x = np.random.default_rng(0).normal(size=(3, 4, 5))
    p, cache = ops.softmax_forward(x, axis=axis)
    np.testing.assert_allclose(p, ops.softmax_forward(x.swapaxes(axis, -1))[0].swapaxes(axis, -1), rtol=1e-15)
    np.testing.assert_allclose(p.sum(axis=axis), 1, rtol=1e-15)
    assert cache is p


def test_softmax_over_columns_by_hand():
    """exp is 1 and 3 in the first column, 1 and 0 in the second, 1 and 1 in the third."""
    p, _ = ops.softmax_forward(np.array([[0.0, 5, 7], [math.log(3), -np.inf, 7]]), axis=0)
    np.testing.assert_allclose(p, [[1 / 4, 1, 1 / 2], [3 / 4, 0, 1 / 2]], rtol=1e-15)


@each_dtype
def test_softmax_of_huge_scores(dtype):
    """Ties share; a lead of 1e4 takes all; and 1e4 added to every score changes nothing."""
    p, _ = ops.softmax_forward(np.array([[1e4, 1e4], [1e4, 0], [-1e4, -1e4], [0, -1e4]], dtype))
    np.testing.assert_array_equal(p, [[0.5, 0.5], [1, 0], [0.5, 0.5], [1, 0]])


def test_softmax_gives_minus_infinity_exactly_nothing():
    p, cache = ops.softmax_forward(np.array([[0.0, -math.inf, 0.0], [-math.inf, -7.0, -math.inf]]))
    np.testing.assert_array_equal(p, [[0.5, 0, 0.5], [0, 1, 0]])
    np.testing.assert_array_equal(ops.softmax_backward(np.ones((2, 3)), cache), 0)  # all equally wanted: no change


def test_rows_of_the_softmax_gradient_sum_to_zero():
    p_TE, cache = ops.softmax_forward(*arrays_of("softmax"))
    dx_TE = ops.softmax_backward(np.random.default_rng(1).normal(size=p_TE.shape), cache)
    assert np.abs(dx_TE).max() > 0.1 and np.abs(dx_TE.sum(axis=1)).max() < 1e-15


def test_sigmoid_by_hand():
    """sigmoid(0) = 1/2, slope 1/4; sigmoid(ln 3) = 3/4 and sigmoid(-ln 3) = 1/4, slopes 3/16."""
    s, cache = ops.sigmoid_forward(np.array([[0, math.log(3), -math.log(3)]]))
    np.testing.assert_allclose(s, [[1 / 2, 3 / 4, 1 / 4]], 1e-15)
    np.testing.assert_allclose(ops.sigmoid_backward(np.array([[1.0, 1.0, 16.0]]), cache), [[1 / 4, 3 / 16, 3]], 1e-15)


def test_sigmoid_against_a_loop():
    x_TE = 5 * arrays_of("sigmoid")[0]
    slow = [[sigmoid(x) for x in x_E] for x_E in x_TE]
    np.testing.assert_allclose(ops.sigmoid_forward(x_TE)[0], slow, rtol=0, atol=3e-16)


@each_dtype
def test_sigmoid_saturates_without_overflow(dtype):
    s, cache = ops.sigmoid_forward(np.array([[1e4, -1e4, 1e38, -1e38]], dtype))
    np.testing.assert_array_equal(s, [[1, 0, 1, 0]])
    np.testing.assert_array_equal(ops.sigmoid_backward(np.ones((1, 4), dtype), cache), 0)


def test_softplus_by_hand():
    """log(1 + 1) = ln 2, slope 1/2; log(1 + 3) = ln 4, slope 3/4; log(1 + 1/3) = ln 4/3, slope 1/4."""
    y, cache = ops.softplus_forward(np.array([[0, math.log(3), -math.log(3)]]))
    np.testing.assert_allclose(y, [[math.log(2), math.log(4), math.log(4 / 3)]], 1e-15)
    np.testing.assert_allclose(ops.softplus_backward(np.array([[2.0, 4.0, 4.0]]), cache), [[1, 3, 1]], 1e-15)


def test_softplus_against_a_loop():
    x_TE = 5 * arrays_of("softplus")[0]
    slow = [[math.log1p(math.exp(x)) for x in x_E] for x_E in x_TE]
    np.testing.assert_allclose(ops.softplus_forward(x_TE)[0], slow, 1e-14)


def test_softplus_is_positive_and_keeps_its_digits_far_to_the_left():
    """There log(1 + e^x) = e^x, which 1 + e^x has lost."""
    x_TE = np.array([[-40.0, -300.0, -700.0]])
    np.testing.assert_allclose(ops.softplus_forward(x_TE)[0], np.exp(x_TE), 1e-15)


@each_dtype
def test_softplus_of_huge_numbers_is_the_ramp(dtype):
    y, cache = ops.softplus_forward(np.array([[1e4, -1e4, 1e38, -1e38]], dtype))
    np.testing.assert_array_equal(y, np.array([[1e4, 0, 1e38, 0]], dtype))
    np.testing.assert_array_equal(ops.softplus_backward(np.ones((1, 4), dtype), cache), [[1, 0, 1, 0]])


NORMAL_Z = np.linspace(-12, 12, 24_001)


def test_normal_cdf_is_that_of_the_standard_library():
    p = normal.normal_cdf_forward(NORMAL_Z)[0]
    np.testing.assert_allclose(p, [phi(z) for z in NORMAL_Z], rtol=0, atol=1e-15)


def test_normal_cdf_has_its_digits_in_the_lower_tail_too():
    z = NORMAL_Z[np.abs(NORMAL_Z + 4.5) < 4.5]
    np.testing.assert_allclose(normal.normal_cdf_forward(z)[0], [phi(each) for each in z], rtol=1e-13)


def test_normal_cdf_by_hand():
    """Half at 0; and the well-known 68, 95 and 99.7 % within one, two and three standard deviations."""
    p = normal.normal_cdf_forward(np.array([0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0]))[0]
    assert p[0] == 0.5
    np.testing.assert_allclose(p[1::2] - p[2::2], [0.6827, 0.9545, 0.9973], atol=5e-5)


def test_normal_cdf_is_symmetric():
    below, above = (normal.normal_cdf_forward(z)[0] for z in (NORMAL_Z, -NORMAL_Z))
    np.testing.assert_allclose(below + above, 1, rtol=0, atol=4e-16)


@each_dtype
def test_normal_cdf_rises(dtype):
    """But for the last digit near 1, where steps are smaller than digits."""
    p = normal.normal_cdf_forward(NORMAL_Z.astype(dtype))[0]
    assert np.diff(p).min() >= -np.finfo(dtype).eps
    assert (np.diff(p[np.abs(NORMAL_Z) < 4]) > 0).all()
    assert p.min() >= 0 and p.max() <= 1


def test_the_complex_step_through_normal_cdf_is_the_density():
    z = np.linspace(-8.9, 8.9, 1001)
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    slope = normal.normal_cdf_forward(z + 1e-30j)[0].imag / 1e-30
    np.testing.assert_allclose(slope, density, rtol=1e-11)
    np.testing.assert_allclose(normal.normal_cdf_backward(1.0, normal.normal_cdf_forward(z)[1]), density, rtol=1e-13)


@each_dtype
def test_normal_cdf_ends_at_zero_and_one(dtype):
    p, cache = normal.normal_cdf_forward(np.array([-1e30, -math.inf, 1e30, math.inf], dtype))
    np.testing.assert_allclose(p, [0, 0, 1, 1], atol=1e-15)
    np.testing.assert_allclose(normal.normal_cdf_backward(np.ones(4, dtype), cache), 0, atol=1e-15)


def test_normal_cdf_passes_on_what_is_not_a_number():
    p = normal.normal_cdf_forward(np.array([0.0, math.nan, 1.0]))[0]
    assert np.isnan(p).tolist() == [False, True, False]


def test_float32_normal_cdf_is_right_to_its_digits():
    z = NORMAL_Z.astype(np.float32)
    np.testing.assert_allclose(normal.normal_cdf_forward(z)[0], [phi(float(each)) for each in z], rtol=0, atol=2e-7)


def test_rmsnorm_by_hand():
    """x = (1, 7): mean square 25, with eps = 11 it is 36, so unit = x / 6 and y = (2/6, 3*7/6).

    dy = (1, 0): dunit = (2, 0), its mean along unit is (2/6)/2 = 1/6,
    dx = (2 - 1/36, -7/36) / 6 = (71/216, -7/216); dgain = dy * unit = (1/6, 0).
    """
    y, cache = ops.rmsnorm_forward(np.array([[1.0, 7.0]]), np.array([2.0, 3.0]), 11)
    dx, dgain = ops.rmsnorm_backward(np.array([[1.0, 0.0]]), cache)
    np.testing.assert_allclose(y, [[1 / 3, 7 / 2]], 1e-15)
    np.testing.assert_allclose(dx, [[71 / 216, -7 / 216]], 1e-14)
    np.testing.assert_allclose(dgain, [1 / 6, 0], 1e-15)


def test_rmsnorm_against_a_loop():
    x_TD, gain_D = arrays_of("RMSNorm")
    slow = [[gain * x / math.sqrt(dot(x_D, x_D) / D + 1e-2) for x, gain in zip(x_D, gain_D, strict=True)]
            for x_D in x_TD]
    np.testing.assert_allclose(rmsnorm(x_TD, gain_D)[0], slow, 1e-13)


def test_rmsnorm_gives_every_token_the_same_size():
    """With gain 1 and next to no eps the mean square is 1, and a gradient along the token itself is lost."""
    x_TD, _ = arrays_of("RMSNorm")
    unit_TD, cache = ops.rmsnorm_forward(x_TD, np.ones(D), 1e-300)
    np.testing.assert_allclose((unit_TD**2).mean(axis=1), 1, 1e-14)
    np.testing.assert_allclose(ops.rmsnorm_backward(unit_TD, cache)[0], 0, atol=1e-14)


def test_rmsnorm_of_nothing_is_nothing():
    y, cache = ops.rmsnorm_forward(np.zeros((2, D)), np.ones(D), 1e-5)
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_array_equal(ops.rmsnorm_backward(np.zeros((2, D)), cache)[0], 0)


def test_silu_gate_by_hand():
    """sigmoid(0) = 1/2 and sigmoid(ln 3) = 3/4.

    h = z sigmoid(z) up = 0 and ln 3 * 3/4 * 4; slope = s + z s (1 - s) = 1/2 and 3/4 + ln 3 * 3/16.
    """
    log3 = math.log(3)
    h, cache = ops.silu_gate_forward(np.array([[0, log3]]), np.array([[4.0, 4.0]]))
    dgate, dup = ops.silu_gate_backward(np.array([[1.0, 1.0]]), cache)
    np.testing.assert_allclose(h, [[0, 3 * log3]], 1e-15)
    np.testing.assert_allclose(dgate, [[4 * 1 / 2, 4 * (3 / 4 + log3 * 3 / 16)]], 1e-15)
    np.testing.assert_allclose(dup, [[0, 3 / 4 * log3]], 1e-15)


def test_silu_gate_against_a_loop():
    gate_TF, up_TF = arrays_of("SiLU gate")
    slow = [z * sigmoid(z) * up for z, up in zip(gate_TF.flat, up_TF.flat, strict=True)]
    np.testing.assert_allclose(ops.silu_gate_forward(gate_TF, up_TF)[0].ravel(), slow, 1e-13)


@each_dtype
def test_silu_saturates_without_overflow(dtype):
    """Far to the right it is z with slope 1, far to the left 0 with slope 0."""
    h, cache = ops.silu_gate_forward(np.array([[1e4, -1e4, 1e38, -1e38]], dtype), np.ones((1, 4), dtype))
    dgate, dup = ops.silu_gate_backward(np.ones((1, 4), dtype), cache)
    np.testing.assert_array_equal(h, np.array([[1e4, 0, 1e38, 0]], dtype))
    np.testing.assert_array_equal(dgate, [[1, 0, 1, 0]])
    np.testing.assert_array_equal(dup, h)


def test_swiglu_by_hand():
    """x = 1, gate = ln 3, up = 8: h = ln 3 * 3/4 * 8 = 6 ln 3, down 2: y = 12 ln 3, and dw_down = h."""
    log3 = math.log(3)
    y, cache = ops.swiglu_forward(*(np.array([[value]]) for value in (1.0, log3, 8.0, 2.0)))
    *_, dw_down = ops.swiglu_backward(np.array([[1.0]]), cache)
    np.testing.assert_allclose([y, dw_down], [[[12 * log3]], [[6 * log3]]], 1e-15)


def test_swiglu_against_a_loop():
    x_TD, *weights = arrays_of("SwiGLU")
    np.testing.assert_allclose(ops.swiglu_forward(x_TD, *weights)[0], [slow_swiglu(x, *weights) for x in x_TD], 1e-12)


def test_swiglu_writes_gradients_of_its_weights_where_it_is_told_to():
    """The same numbers, into what `out` gives and nowhere else: one expert of three, over what was there before."""
    x_TD, *weights = arrays_of("SwiGLU")
    y_TD, cache = ops.swiglu_forward(x_TD, *weights)
    dy_TD = np.random.default_rng(1).normal(size=y_TD.shape)
    dx_TD, *expected = ops.swiglu_backward(dy_TD, cache)
    stacked = [np.full((3, *w.shape), np.nan) for w in weights]
    dx_too_TD, *returned = ops.swiglu_backward(dy_TD, cache, out=[dw[1] for dw in stacked])
    np.testing.assert_array_equal(dx_too_TD, dx_TD)
    for dw, same, there in zip(expected, returned, stacked, strict=True):
        np.testing.assert_array_equal(there[1], dw)
        assert np.shares_memory(same, there) and np.isnan(there[::2]).all()


def test_embedding_by_hand():
    """Token 1 stands twice, so its row gets 1 + 100; token 0 never, so its row gets nothing."""
    x, cache = ops.embedding_forward(np.array([1, 2, 1]), np.array([[5.0], [6.0], [7.0]]))
    np.testing.assert_array_equal(x, [[6], [7], [6]])
    np.testing.assert_array_equal(ops.embedding_backward(np.array([[1.0], [10.0], [100.0]]), cache), [[0], [101], [10]])


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, V - 1), min_size=1, max_size=30))
def test_the_embedding_gradient_counts_every_occurrence(tokens):
    dx_TD = np.random.default_rng(0).normal(size=(len(tokens), D))
    slow_VD = np.zeros((V, D))
    np.add.at(slow_VD, tokens, dx_TD)
    dw_VD = ops.embedding_backward(dx_TD, ops.embedding_forward(np.array(tokens), np.zeros((V, D)))[1])
    np.testing.assert_allclose(dw_VD, slow_VD, atol=1e-13)


@pytest.mark.parametrize("target", range(V))
def test_cross_entropy_of_uniform_logits_is_log_v(target):
    loss, _ = ops.cross_entropy_forward(np.full((1, V), 3.0), np.array([target]), np.ones(1))
    assert math.isclose(loss, math.log(V), rel_tol=1e-15)


def test_cross_entropy_by_hand():
    """p = (1/4, 3/4) in both rows.  Targets 0 and 1 with weights 1/4 and 3/4: 1/4 ln 4 + 3/4 ln 4/3.

    Gradient: weight (p - target) = 1/4 (-3/4, 3/4) and 3/4 (1/4, -1/4), and with dloss = 2 twice that.
    """
    logit_TV = np.log([[1.0, 3.0], [1.0, 3.0]])
    loss, cache = ops.cross_entropy_forward(logit_TV, np.array([0, 1]), np.array([1 / 4, 3 / 4]))
    assert math.isclose(loss, math.log(4) / 4 + 3 / 4 * math.log(4 / 3), rel_tol=1e-15)
    expected = np.array([[-3 / 8, 3 / 8], [3 / 8, -3 / 8]])
    np.testing.assert_allclose(ops.cross_entropy_backward(2.0, cache), expected, 1e-14)


def test_cross_entropy_against_a_loop():
    (logit_TV,) = arrays_of("cross-entropy")
    slow = sum(weight * (math.log(sum(math.exp(x) for x in logit_V)) - logit_V[target])
               for logit_V, target, weight in zip(logit_TV, TOKENS_T, WEIGHT_T, strict=True))
    assert math.isclose(cross_entropy(logit_TV)[0], slow, rel_tol=1e-13)


@each_dtype
def test_cross_entropy_of_huge_logits(dtype):
    """Sure and right costs 0, sure and wrong costs the lead, 1e4; the gradients are 0 and (1, -1), here halved."""
    logit_TV, weight_T = np.array([[1e4, 0], [0, -1e4]], dtype), np.array([0.5, 0.5], dtype)
    loss, cache = ops.cross_entropy_forward(logit_TV, np.array([0, 1]), weight_T)
    assert loss == 5000
    np.testing.assert_array_equal(ops.cross_entropy_backward(1.0, cache), [[0, 0], [0.5, -0.5]])


def test_a_token_of_weight_zero_has_exactly_no_loss_and_no_gradient():
    (logit_TV,) = arrays_of("cross-entropy")
    loss, cache = cross_entropy(logit_TV)
    assert loss == cross_entropy(np.concatenate([logit_TV[:1] + np.arange(V), logit_TV[1:]]))[0]
    dlogit_TV = ops.cross_entropy_backward(1.0, cache)
    assert not dlogit_TV[0].any() and dlogit_TV[1:].all()


def test_rows_of_the_cross_entropy_gradient_sum_to_zero():
    _, cache = cross_entropy(*arrays_of("cross-entropy"))
    assert np.abs(ops.cross_entropy_backward(1.0, cache).sum(axis=1)).max() < 1e-16 * V
