"""Attention by hand, against slow loops and by the complex step; what it may see, and what distance alone decides."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimoe import config, gradcheck
from minimoe.nn import attention

B, S, M, D, H, G, P = 2, 5, 7, 9, 6, 3, 4
THETA = 100.0
NAMES = "x_BSD", "w_q_DHP", "w_k_DGP", "w_v_DGP", "w_o_HPD"
SHAPES = (B, S, D), (D, H, P), (D, G, P), (D, G, P), (H, P, D)

each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def table(dtype=np.float64, start=0, stop=S):
    """The rotations of some positions of a head."""
    return attention.rope_table(np.arange(start, stop), P, THETA, dtype)


def layer_forward(x_BSD, *weights):
    return attention.attention_forward(x_BSD, dict(zip(NAMES[1:], weights, strict=True)), table(x_BSD.real.dtype))


def layer_backward(dy_BSD, cache):
    dx_BSD, dweights = attention.attention_backward(dy_BSD, cache)
    return dx_BSD, *(dweights[name] for name in NAMES[1:])


def rope(x_BHSP):
    return attention.rope_forward(x_BHSP, *table(x_BHSP.real.dtype))


PAIRS = {
    "rotary positions": (rope, attention.rope_backward, [(B, H, S, P)]),
    "attend": (attention.attend_forward, attention.attend_backward, [(B, H, S, P), (B, G, S, P), (B, G, S, P)]),
    "attend after a past": (attention.attend_forward, attention.attend_backward,
                            [(B, H, S, P), (B, G, M, P), (B, G, M, P)]),
    "split heads": (attention.split_heads_forward, attention.split_heads_backward, [(B, S, D), (D, H, P)]),
    "merge heads": (attention.merge_heads_forward, attention.merge_heads_backward, [(B, H, S, P), (H, P, D)]),
    "attention": (layer_forward, layer_backward, SHAPES),
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


def slow_attend(q_BHSP, k_BGMP, v_BGMP):
    """One query at a time, with a list of the keys that it may see."""
    mix_BHSP = np.zeros_like(q_BHSP)
    heads, queries = q_BHSP.shape[1:3]
    groups, keys = k_BGMP.shape[1:3]
    for b, h, s in np.ndindex(q_BHSP.shape[:3]):
        g = h // (heads // groups)
        seen = range(keys - queries + s + 1)
        match = [math.exp(sum(q_BHSP[b, h, s] * k_BGMP[b, g, m]) / math.sqrt(q_BHSP.shape[3])) for m in seen]
        mix_BHSP[b, h, s] = sum(match[m] / sum(match) * v_BGMP[b, g, m] for m in seen)
    return mix_BHSP


def slow_rope(x_BHSP, theta):
    """One pair (i, i + P/2) at a time, turned by position * theta^(-2i/P)."""
    y_BHSP = np.zeros_like(x_BHSP)
    width = x_BHSP.shape[3]
    for b, h, s, i in np.ndindex(*x_BHSP.shape[:3], width // 2):
        angle = s * theta ** (-2 * i / width)
        left, right = x_BHSP[b, h, s, i], x_BHSP[b, h, s, i + width // 2]
        y_BHSP[b, h, s, i] = left * math.cos(angle) - right * math.sin(angle)
        y_BHSP[b, h, s, i + width // 2] = left * math.sin(angle) + right * math.cos(angle)
    return y_BHSP


def scores(q_SP, k_SP, position_S):
    """q.k of every two positions."""
    turns = attention.rope_table(position_S, q_SP.shape[1], THETA, np.float64)
    return attention.rope_forward(q_SP, *turns)[0] @ attention.rope_forward(k_SP, *turns)[0].T


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


@pytest.mark.parametrize("name", ["attend", "attend after a past"])
def test_attend_against_a_loop(name):
    arrays = arrays_of(name)
    np.testing.assert_allclose(attention.attend_forward(*arrays)[0], slow_attend(*arrays), atol=1e-14)


@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (4, 1), (4, 2), (6, 2), (3, 3)])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (1, 1), (1, 6), (3, 7)])
def test_heads_that_share_a_key_head_attend_as_the_loop_says(heads, key_heads, queries, keys):
    rng = np.random.default_rng(0)
    q_BHSP, *keys_and_values = (rng.normal(size=(2, n, length, 4))
                                for n, length in ((heads, queries), (key_heads, keys), (key_heads, keys)))
    mix_BHSP, (*_, weight_BGMQ, _) = attention.attend_forward(q_BHSP, *keys_and_values)
    np.testing.assert_allclose(mix_BHSP, slow_attend(q_BHSP, *keys_and_values), atol=1e-14)
    assert weight_BGMQ.shape == (2, key_heads, keys, heads // key_heads * queries)  # keys first
    np.testing.assert_allclose(weight_BGMQ.sum(axis=2), 1, rtol=1e-14)


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 1), (4, 2), (3, 3)])
def test_gradients_of_attend_against_a_loop_over_queries(heads, key_heads):
    """score = q.k / 2: dv = sum weight dmix; dscore = weight (dmix.v - sum weight dmix.v); dq, dk = dscore k, q / 2."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, n, S, 4)) for n in (heads, key_heads, key_heads))
    dmix = rng.normal(size=q.shape)
    dq, dk, dv = (np.zeros_like(array) for array in (q, k, v))
    for b, h, s in np.ndindex(q.shape[:3]):
        shared, seen = (b, h // (heads // key_heads)), slice(0, s + 1)
        weight = np.exp(k[shared][seen] @ q[b, h, s] / 2)
        weight /= weight.sum()
        pull = v[shared][seen] @ dmix[b, h, s]
        dscore = weight * (pull - weight @ pull)
        dv[shared][seen] += np.outer(weight, dmix[b, h, s])
        dq[b, h, s] += dscore @ k[shared][seen] / 2
        dk[shared][seen] += np.outer(dscore, q[b, h, s]) / 2
    _, cache = attention.attend_forward(q, k, v)
    for mine, expected in zip(attention.attend_backward(dmix, cache), (dq, dk, dv), strict=True):
        assert gradcheck.error(mine, expected) < 1e-14


def test_the_future_has_exactly_no_weight():
    *_, weight_BGMQ, _ = attention.attend_forward(*arrays_of("attend"))[1]
    by_head = np.moveaxis(weight_BGMQ.reshape(B, G, S, H // G, S), 3, 2)  # [..., key, query]
    assert not by_head[..., np.tril(np.ones((S, S), bool), k=-1)].any()
    assert by_head[..., np.triu(np.ones((S, S), bool))].all()


@each_dtype
def test_the_future_has_no_weight_however_well_it_matches(dtype):
    """The first query matches itself with -1e12 and the second key with 1e12, and still reads the first value, 7."""
    q_BHSP, k_BGMP = np.full((1, 1, 2, 1), 1e6, dtype), np.array([[[[-1e6], [1e6]]]], dtype)
    mix_BHSP, _ = attention.attend_forward(q_BHSP, k_BGMP, np.array([[[[7], [9]]]], dtype))
    np.testing.assert_array_equal(mix_BHSP.ravel(), [7, 9])


@pytest.mark.parametrize("last", range(1, S))
def test_changing_later_tokens_changes_no_earlier_output(last):
    x_BSD, *weights = arrays_of("attention")
    changed_BSD = x_BSD.copy()
    changed_BSD[:, last:] *= -3
    before, after = layer_forward(x_BSD, *weights)[0], layer_forward(changed_BSD, *weights)[0]
    np.testing.assert_array_equal(before[:, :last], after[:, :last])
    assert (before[:, last:] != after[:, last:]).all()


def test_huge_scores_do_not_overflow():
    """A match of 1e8 against 0 takes all: the second query reads the first value, 7."""
    q_BHSP, k_BGMP = np.full((1, 1, 2, 2), 1e4), np.array([[[[1e4, 0], [0, 0]]]])
    mix_BHSP, _ = attention.attend_forward(q_BHSP, k_BGMP, np.array([[[[7.0, 7], [9, 9]]]]))
    np.testing.assert_array_equal(mix_BHSP, 7)


@pytest.mark.parametrize(("groups", "heads"), [(1, 1), (1, 6), (2, 6), (3, 6), (6, 6)])
def test_a_shared_key_head_equals_its_copies(groups, heads):
    """Head h reads key head h // (H/G); the gradient of a shared head is the sum of those of its copies."""
    rng = np.random.default_rng(0)
    shapes = (B, S, D), (D, heads, P), (D, groups, P), (D, groups, P), (heads, P, D)
    x_BSD, w_q, w_k, w_v, w_o = (rng.normal(size=shape) for shape in shapes)
    shared_BSD, shared = layer_forward(x_BSD, w_q, w_k, w_v, w_o)
    full_BSD, full = layer_forward(x_BSD, w_q, *(np.repeat(w, heads // groups, axis=1) for w in (w_k, w_v)), w_o)
    np.testing.assert_allclose(shared_BSD, full_BSD, atol=1e-13)
    for mine, copies in zip(layer_backward(full_BSD, shared), layer_backward(full_BSD, full), strict=True):
        if mine.shape != copies.shape:
            copies = copies.reshape(D, groups, heads // groups, P).sum(axis=2)
        assert gradcheck.error(mine, copies) < 1e-13


def test_rotation_by_hand():
    """Position 1, P = 4, base 100: the pair (0, 2) turns by 1 radian, the pair (1, 3) by 100^(-2/4) = 0.1.

    (1, 0) becomes (cos 1, sin 1), and (0, 2) becomes (-2 sin 0.1, 2 cos 0.1).
    """
    turns = attention.rope_table(np.array([1]), 4, 100.0, np.float64)
    y, _ = attention.rope_forward(np.array([[[[1.0, 0, 0, 2]]]]), *turns)
    np.testing.assert_allclose(y.ravel(), [math.cos(1), -2 * math.sin(0.1), math.sin(1), 2 * math.cos(0.1)], 1e-15)


@pytest.mark.parametrize("width", [2, 4, 10])
def test_rotation_against_a_loop(width):
    x_BHSP = np.random.default_rng(0).normal(size=(B, H, S, width))
    turns = attention.rope_table(np.arange(S), width, THETA, np.float64)
    np.testing.assert_allclose(attention.rope_forward(x_BHSP, *turns)[0], slow_rope(x_BHSP, THETA), atol=1e-14)


@pytest.mark.parametrize("start", [0, 7])
def test_rotation_is_multiplication_by_a_complex_number(start):
    """Of x_i + i x_{i+P/2} by exp(i * position * theta^(-2i/P)); the gradient is multiplied by its conjugate."""
    x_BHSP = np.random.default_rng(0).normal(size=(B, H, S, 6))
    turns = attention.rope_table(start + np.arange(S), 6, THETA, np.float64)
    turn = np.exp(1j * np.outer(start + np.arange(S), THETA ** (-np.arange(3) / 3)))
    y_BHSP, cache = attention.rope_forward(x_BHSP, *turns)
    for got, factor in ((y_BHSP, turn), (attention.rope_backward(x_BHSP, cache), turn.conj())):
        turned = (x_BHSP[..., :3] + 1j * x_BHSP[..., 3:]) * factor
        np.testing.assert_allclose(got, np.concatenate([turned.real, turned.imag], axis=-1), atol=1e-14)


def test_the_first_position_is_not_turned():
    (x_BHSP,) = arrays_of("rotary positions")
    np.testing.assert_array_equal(rope(x_BHSP)[0][:, :, 0], x_BHSP[:, :, 0])


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 1000))
def test_scores_depend_on_the_distance_alone(shift):
    q_SP, k_SP = np.random.default_rng(0).normal(size=(2, S, P))
    np.testing.assert_allclose(scores(q_SP, k_SP, shift + np.arange(S)), scores(q_SP, k_SP, np.arange(S)), atol=1e-12)


def test_scores_differ_with_the_distance_and_its_sign():
    """One query and one key, at every distance from -4 to 4."""
    q_P, k_P = np.random.default_rng(0).normal(size=(2, P))
    all_SS = scores(np.tile(q_P, (S, 1)), np.tile(k_P, (S, 1)), np.arange(S))
    by_distance = [all_SS[0, 4 - i] if i < 5 else all_SS[i - 4, 0] for i in range(9)]
    assert np.diff(np.sort(by_distance)).min() > 1e-3


def test_rotation_preserves_norms_and_its_backward_undoes_it():
    (x_BHSP,) = arrays_of("rotary positions")
    y_BHSP, cache = rope(x_BHSP)
    np.testing.assert_allclose((y_BHSP**2).sum(axis=-1), (x_BHSP**2).sum(axis=-1), 1e-13)
    np.testing.assert_allclose(attention.rope_backward(y_BHSP, cache), x_BHSP, atol=1e-14)


def test_angles_are_as_exact_in_float32_as_in_float64():
    """Far out an angle itself does not fit into float32, so only its sine and cosine are rounded."""
    position_S = np.array([0, 1, 99_999])
    for rounded, exact in zip(*(attention.rope_table(position_S, P, 10_000.0, t) for t in (np.float32, np.float64)),
                              strict=True):
        np.testing.assert_array_equal(rounded, exact.astype(np.float32), strict=True)


def test_heads_are_split_and_merged_in_order():
    x_BSD, w_DHP = arrays_of("split heads")
    mix_BHSP, w_HPD = arrays_of("merge heads")
    q_BHSP, _ = attention.split_heads_forward(x_BSD, w_DHP)
    y_BSD, _ = attention.merge_heads_forward(mix_BHSP, w_HPD)
    for b, s in np.ndindex(B, S):
        each_head = [x_BSD[b, s] @ w_DHP[:, h] for h in range(H)]
        np.testing.assert_allclose(q_BHSP[b, :, s], each_head, atol=1e-14)
        np.testing.assert_allclose(y_BSD[b, s], sum(mix_BHSP[b, h, s] @ w_HPD[h] for h in range(H)), atol=1e-14)


def test_attention_against_loops():
    x_BSD, w_q, w_k, w_v, w_o = arrays_of("attention")
    q_BHSP, k_BGMP, v_BGMP = (np.einsum("bsd,dhp->bhsp", x_BSD, w) for w in (w_q, w_k, w_v))
    mix_BHSP = slow_attend(slow_rope(q_BHSP, THETA), slow_rope(k_BGMP, THETA), v_BGMP)
    y_BSD = np.einsum("bhsp,hpd->bsd", mix_BHSP, w_o)
    np.testing.assert_allclose(layer_forward(x_BSD, w_q, w_k, w_v, w_o)[0], y_BSD, atol=1e-12)


def test_the_keys_that_are_kept_are_already_turned_to_their_positions():
    x_BSD, _, w_k_DGP, w_v_DGP, _ = arrays = arrays_of("attention")
    _, cache = layer_forward(*arrays)
    k_BGMP, v_BGMP = (np.einsum("bsd,dgp->bgsp", x_BSD, w) for w in (w_k_DGP, w_v_DGP))
    np.testing.assert_allclose(cache.k_BGMP, slow_rope(k_BGMP, THETA), atol=1e-13)
    np.testing.assert_allclose(cache.v_BGMP, v_BGMP, atol=1e-13)


@pytest.mark.parametrize("split", range(1, S))
def test_a_text_in_two_parts_gives_the_output_of_the_whole(split):
    x_BSD, *weights = arrays_of("attention")
    weights = dict(zip(NAMES[1:], weights, strict=True))
    whole_BSD, cache = attention.attention_forward(x_BSD, weights, table())
    first_BSD, past = attention.attention_forward(x_BSD[:, :split], weights, table(stop=split))
    rest_BSD, both = attention.attention_forward(x_BSD[:, split:], weights, table(start=split),
                                                 (past.k_BGMP, past.v_BGMP))
    np.testing.assert_allclose(np.concatenate([first_BSD, rest_BSD], axis=1), whole_BSD, atol=1e-13)
    np.testing.assert_allclose([both.k_BGMP, both.v_BGMP], [cache.k_BGMP, cache.v_BGMP], atol=1e-14)


def test_a_text_token_by_token_gives_the_output_of_the_whole():
    x_BSD, *weights = arrays_of("attention")
    weights = dict(zip(NAMES[1:], weights, strict=True))
    past, outputs = None, []
    for s in range(S):
        y_B1D, cache = attention.attention_forward(x_BSD[:, s:s + 1], weights, table(start=s, stop=s + 1), past)
        past = cache.k_BGMP, cache.v_BGMP
        outputs.append(y_B1D)
    whole_BSD, _ = attention.attention_forward(x_BSD, weights, table())
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), whole_BSD, atol=1e-13)


def test_backward_after_a_past_is_refused():
    x_BSD, *weights = arrays_of("attention")
    weights = dict(zip(NAMES[1:], weights, strict=True))
    _, past = attention.attention_forward(x_BSD, weights, table())
    y_BSD, cache = attention.attention_forward(x_BSD, weights, table(start=S, stop=2 * S), (past.k_BGMP, past.v_BGMP))
    with pytest.raises(ValueError, match="the forward had a past"):
        attention.attention_backward(y_BSD, cache)
