"""Dispatch and combine: rows out, rows back, nothing lost and nothing added."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minimoe.moe import dispatch, routing
from minimoe.moe.routing import Tokens
from tests import cases

# Three tokens, two experts.  Expert 0 has token 2 and then token 0; expert 1 has token 0 and no room for token 1.
EXAMPLE = routing.Routing(
    token_A=np.array([0, 0, 1, 2]), expert_A=np.array([0, 1, 1, 0]), rank_A=np.array([0, 1, 0, 0]),
    gate_A=np.array([0.5, 0.25, 2.0, 4.0]), slot_A=np.array([1, 0, 2, 0]), kept_A=np.array([True, True, False, True]),
    logit_TE=np.zeros((3, 2)), prob_TE=np.zeros((3, 2)), tokens=Tokens.anonymous(np.ones(3, bool)), capacity=2)
A_TD = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
ROWS_ND = np.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])


def test_dispatch_by_hand():
    rows_ND, cache = dispatch.dispatch_forward(A_TD, EXAMPLE)
    assert rows_ND.tolist() == [[5, 6], [1, 2], [1, 2]]  # tokens 2, 0 for expert 0; token 0 for expert 1
    dx_TD = dispatch.dispatch_backward(ROWS_ND, cache)
    assert dx_TD.tolist() == [[110, 220], [0, 0], [1, 2]]  # token 0: rows 1 and 2; token 1: none; token 2: row 0


def test_combine_by_hand():
    y_TD, cache = dispatch.combine_forward(ROWS_ND, EXAMPLE)
    assert y_TD.tolist() == [[30, 60], [0, 0], [4, 8]]  # 0.5 * 10 + 0.25 * 100; dropped; 4 * 1
    dout_ND, dgate_N = dispatch.combine_backward(A_TD, cache)
    assert dout_ND.tolist() == [[20, 24], [0.5, 1], [0.25, 0.5]]  # gate times the token's dy
    assert dgate_N.tolist() == [5 * 1 + 6 * 2, 1 * 10 + 2 * 20, 1 * 100 + 2 * 200]  # dy times the row's output


@cases.FEW
@given(T=st.integers(1, 12), E=st.integers(1, 6), seed=st.integers(0, 999),
       limit=st.none() | st.sampled_from([0.3, 0.7, 1.2]))
def test_both_equal_a_loop_over_assignments(T, E, seed, limit):
    r, rng = cases.random_routing(T, E, seed, limit), np.random.default_rng(seed)
    x_TD, dy_TD = rng.normal(size=(2, T, 3))
    rows_ND, cache = dispatch.dispatch_forward(x_TD, r)
    out_ND, drows_ND = rng.normal(size=(2, *rows_ND.shape))
    y_TD, combine_cache = dispatch.combine_forward(out_ND, r)
    dout_ND, dgate_N = dispatch.combine_backward(dy_TD, combine_cache)
    dx_TD, expected_TD = np.zeros((2, T, 3))
    for row, a in enumerate(r.kept_N):
        t = r.token_A[a]
        np.testing.assert_array_equal(rows_ND[row], x_TD[t])
        np.testing.assert_array_equal(dout_ND[row], r.gate_A[a] * dy_TD[t])
        np.testing.assert_allclose(dgate_N[row], dy_TD[t] @ out_ND[row], rtol=1e-12, atol=1e-15)
        dx_TD[t] += drows_ND[row]
        expected_TD[t] += r.gate_A[a] * out_ND[row]
    np.testing.assert_allclose(dispatch.dispatch_backward(drows_ND, cache), dx_TD, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(y_TD, expected_TD, rtol=1e-12, atol=1e-15)


def test_one_token_in_many_rows_gathers_all_their_gradients():
    """Token 0 has 30 experts, token 1 none; `dx[token] += drows` would keep the last row alone."""
    r = cases.routed(np.full((2, 30), 1 / 30), expert_TK=[np.arange(30)] * 2, mask=[True, False])
    drows_ND, expected_TD = np.random.default_rng(0).normal(size=(30, 3)), np.zeros((2, 3))
    np.add.at(expected_TD, r.token_A, drows_ND)
    _, cache = dispatch.dispatch_forward(np.zeros((2, 3)), r)
    np.testing.assert_allclose(dispatch.dispatch_backward(drows_ND, cache), expected_TD, rtol=1e-12)


def test_when_all_are_dropped_nothing_goes_in_and_nothing_comes_back():
    r = replace(EXAMPLE, kept_A=np.zeros(4, bool))
    rows_ND, cache = dispatch.dispatch_forward(A_TD, r)
    y_TD, combine_cache = dispatch.combine_forward(rows_ND, r)
    dout_ND, dgate_N = dispatch.combine_backward(A_TD, combine_cache)
    assert rows_ND.shape == dout_ND.shape == (0, 2) and dgate_N.shape == (0,)
    assert not y_TD.any() and not dispatch.dispatch_backward(dout_ND, cache).any()


def test_gradients():
    r = cases.random_routing(11, 4, seed=0, limit=0.8)

    def combine(out_ND, gate_N):
        gate_A = np.zeros(len(r.gate_A), gate_N.dtype)
        gate_A[r.kept_N] = gate_N
        return dispatch.combine_forward(out_ND, replace(r, gate_A=gate_A))

    rng, N = np.random.default_rng(0), r.kept_A.sum()
    assert 0 < N < len(r.kept_A)
    cases.assert_gradient(lambda x_TD: dispatch.dispatch_forward(x_TD, r), dispatch.dispatch_backward,
                          x_TD=rng.normal(size=(11, 5)))
    cases.assert_gradient(combine, dispatch.combine_backward, out_ND=rng.normal(size=(N, 5)), gate_N=r.gate_A[r.kept_N])
