"""Attention by hand, against slow loops, by the complex step; what it may see, and what depends on distance."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimoe import config
from minimoe.nn import attention
from tests import cases

B, S, M, D, H, G, P = 2, 5, 7, 9, 6, 3, 4
THETA = 100.0
NAMES = "w_q_DHP", "w_k_DGP", "w_v_DGP", "w_o_HPD"
SHAPES = (D, H, P), (D, G, P), (D, G, P), (H, P, D)

each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def random(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) for shape in shapes]


def table(start=0, stop=S):
    """The rotations of some positions of a head."""
    return attention.rope_table(np.arange(start, stop), P, THETA, np.float64)


def random_layer():
    """x_BSD and weights."""
    x_BSD, *arrays = random((B, S, D), *SHAPES)
    return x_BSD, dict(zip(NAMES, arrays, strict=True))


def layer_forward(x_BSD, weights, past=None, start=0):
    return attention.attention_forward(x_BSD, weights, table(start, start + x_BSD.shape[1]), past)


def slow_attend(q_BHSP, k_BGMP, v_BGMP):
    """One query at a time, with a list of the keys that it may see."""
    mix_BHSP = np.zeros_like(q_BHSP)
    (heads, queries), (groups, keys) = q_BHSP.shape[1:3], k_BGMP.shape[1:3]
    for b, h, s in np.ndindex(q_BHSP.shape[:3]):
        g = h // (heads // groups)
        seen = range(keys - queries + s + 1)
        match = [math.exp(sum(q_BHSP[b, h, s] * k_BGMP[b, g, m]) / math.sqrt(q_BHSP.shape[3])) for m in seen]
        mix_BHSP[b, h, s] = sum(match[m] / sum(match) * v_BGMP[b, g, m] for m in seen)
    return mix_BHSP


def slow_rope(x_BHSP, start=0):
    """Each pair x_i + i x_{i+P/2} times exp(i * position * theta^(-2i/P))."""
    half = x_BHSP.shape[3] // 2
    turn_SI = np.exp(1j * np.outer(start + np.arange(x_BHSP.shape[2]), THETA ** (-np.arange(half) / half)))
    turned = (x_BHSP[..., :half] + 1j * x_BHSP[..., half:]) * turn_SI
    return np.concatenate([turned.real, turned.imag], axis=-1)


def scores(q_SP, k_SP, position_S):
    """q.k of every two positions."""
    turns = attention.rope_table(position_S, P, THETA, np.float64)
    return attention.rope_forward(q_SP, *turns)[0] @ attention.rope_forward(k_SP, *turns)[0].T


def test_gradients():
    q_BHSP, k_BGSP, v_BGSP, k_BGMP, v_BGMP = random((B, H, S, P), *[(B, G, S, P)] * 2, *[(B, G, M, P)] * 2)
    x_BSD, weights = random_layer()
    cases.assert_gradient(lambda x: attention.rope_forward(x, *table()), attention.rope_backward, x=q_BHSP)
    cases.assert_gradient(attention.attend_forward, attention.attend_backward, q=q_BHSP, k=k_BGSP, v=v_BGSP)
    cases.assert_gradient(attention.attend_forward, attention.attend_backward, q=q_BHSP, k=k_BGMP, v=v_BGMP)
    cases.assert_gradient(attention.split_heads_forward, attention.split_heads_backward, x=x_BSD, w=weights["w_q_DHP"])
    cases.assert_gradient(attention.merge_heads_forward, attention.merge_heads_backward, x=q_BHSP, w=weights["w_o_HPD"])
    cases.assert_gradients(layer_forward, attention.attention_backward, x_BSD, weights)


def test_the_weights_have_their_shapes_and_spreads():
    """D = 12 in H = 3 heads of P = 4, with G = 1 key head."""
    owned = attention.weights(config.ModelConfig(d_model=12, n_heads=3, n_kv_heads=1), std=0.3, out_std=0.1)
    assert owned == {"w_q_DHP": ((12, 3, 4), 0.3), "w_k_DGP": ((12, 1, 4), 0.3), "w_v_DGP": ((12, 1, 4), 0.3),
                     "w_o_HPD": ((3, 4, 12), 0.1)}


def test_the_scale_is_one_over_the_root_of_the_head_width():
    """P = 4: q.k = 2 ln 3 and 0, over sqrt(4) it is ln 3 and 0, so the weights are 3/4 and 1/4, and 3/4*4 + 1/4*8 = 5.

    The first query sees the first key alone and reads 4.
    """
    q_BHSP = np.array([[[[0, 0, 0, 0], [2 * math.log(3), 0, 0, 0]]]])
    k_BGMP = np.array([[[[1.0, 0, 0, 0], [0, 0, 0, 0]]]])
    v_BGMP = np.array([[[[4.0, 0, 0, 0], [8, 0, 0, 0]]]])
    mix_BHSP, _ = attention.attend_forward(q_BHSP, k_BGMP, v_BGMP)
    np.testing.assert_allclose(mix_BHSP[0, 0], [[4, 0, 0, 0], [5, 0, 0, 0]], 1e-15)


@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (4, 1), (6, 2), (3, 3)])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (1, 6), (3, 7)])
def test_heads_that_share_a_key_head_attend_as_the_loop_does(heads, key_heads, queries, keys):
    q_BHSP, *keys_and_values = random((2, heads, queries, 4), *[(2, key_heads, keys, 4)] * 2)
    mix_BHSP, _ = attention.attend_forward(q_BHSP, *keys_and_values)
    np.testing.assert_allclose(mix_BHSP, slow_attend(q_BHSP, *keys_and_values), atol=1e-14)


@each_dtype
def test_the_future_has_exactly_no_weight_however_well_it_matches_and_huge_scores_do_not_overflow(dtype):
    """The first query matches itself with -1e12 and the second key with 1e12, and still reads the first value, 7."""
    q_BHSP, k_BGMP = np.full((1, 1, 2, 1), 1e6, dtype), np.array([[[[-1e6], [1e6]]]], dtype)
    mix_BHSP, _ = attention.attend_forward(q_BHSP, k_BGMP, np.array([[[[7], [9]]]], dtype))
    np.testing.assert_array_equal(mix_BHSP.ravel(), [7, 9])


def test_changing_later_tokens_changes_no_earlier_output():
    x_BSD, weights = random_layer()
    before, _ = layer_forward(x_BSD, weights)
    for last in range(1, S):
        changed_BSD = x_BSD.copy()
        changed_BSD[:, last:] *= -3
        after, _ = layer_forward(changed_BSD, weights)
        np.testing.assert_array_equal(before[:, :last], after[:, :last])
        assert (before[:, last:] != after[:, last:]).all()


def test_rotation_by_hand():
    """Position 1, P = 4, base 100: the pair (0, 2) turns by 1 radian, the pair (1, 3) by 100^(-2/4) = 0.1.

    (1, 0) becomes (cos 1, sin 1), and (0, 2) becomes (-2 sin 0.1, 2 cos 0.1).
    """
    y, _ = attention.rope_forward(np.array([[[[1.0, 0, 0, 2]]]]), *table(1, 2))
    np.testing.assert_allclose(y.ravel(), [math.cos(1), -2 * math.sin(0.1), math.sin(1), 2 * math.cos(0.1)], 1e-15)


@pytest.mark.parametrize(("width", "start"), [(2, 0), (4, 7), (10, 0)])
def test_rotation_is_multiplication_by_a_complex_number_and_its_backward_undoes_it(width, start):
    (x_BHSP,) = random((B, H, S, width))
    y_BHSP, cache = attention.rope_forward(x_BHSP, *attention.rope_table(start + np.arange(S), width, THETA, float))
    np.testing.assert_allclose(y_BHSP, slow_rope(x_BHSP, start), atol=1e-14)
    np.testing.assert_allclose(attention.rope_backward(y_BHSP, cache), x_BHSP, atol=1e-14)


@cases.FEW
@given(st.integers(0, 1000))
def test_scores_depend_on_the_distance_alone(shift):
    q_SP, k_SP = random((S, P), (S, P))
    np.testing.assert_allclose(scores(q_SP, k_SP, shift + np.arange(S)), scores(q_SP, k_SP, np.arange(S)), atol=1e-12)


def test_angles_are_as_exact_in_float32_as_in_float64():
    """Far out an angle itself does not fit into float32, so only its sine and cosine are rounded."""
    for rounded, exact in zip(*(attention.rope_table(np.array([0, 1, 99_999]), P, 10_000.0, dtype)
                                for dtype in (np.float32, np.float64)), strict=True):
        np.testing.assert_array_equal(rounded, exact.astype(np.float32), strict=True)


def test_attention_equals_loops_and_keeps_keys_that_are_turned_to_their_positions():
    """Head h reads key head h // (H/G)."""
    x_BSD, weights = random_layer()
    q_BHSP, k_BGMP, v_BGMP = (np.einsum("bsd,dhp->bhsp", x_BSD, weights[name]) for name in NAMES[:3])
    mix_BHSP = slow_attend(slow_rope(q_BHSP), slow_rope(k_BGMP), v_BGMP)
    y_BSD, cache = layer_forward(x_BSD, weights)
    np.testing.assert_allclose(y_BSD, np.einsum("bhsp,hpd->bsd", mix_BHSP, weights["w_o_HPD"]), atol=1e-12)
    np.testing.assert_allclose(cache.k_BGMP, slow_rope(k_BGMP), atol=1e-13)
    np.testing.assert_allclose(cache.v_BGMP, v_BGMP, atol=1e-13)


@pytest.mark.parametrize("lengths", [(1, 4), (3, 2), (1, 1, 1, 1, 1)])
def test_a_sequence_in_parts_gives_the_output_of_the_whole(lengths):
    x_BSD, weights = random_layer()
    whole_BSD, _ = layer_forward(x_BSD, weights)
    past, outputs, start = None, [], 0
    for length in lengths:
        y_BSD, cache = layer_forward(x_BSD[:, start:start + length], weights, past, start)
        past, start = (cache.k_BGMP, cache.v_BGMP), start + length
        outputs.append(y_BSD)
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), whole_BSD, atol=1e-13)
    with pytest.raises(ValueError, match="the forward pass had a past"):
        attention.attention_backward(y_BSD, cache)
