"""Dispatch and combine: rows out, rows back, nothing lost and nothing added."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimoe import gradcheck
from minimoe.moe import capacity, dispatch, gates, routing
from minimoe.moe.routing import Tokens

PLAIN = settings(derandomize=True, deadline=None)
SIZES = dict(T=st.integers(1, 12), E=st.integers(1, 6), factor=st.none() | st.sampled_from([0.3, 0.7, 1.2]),
             seed=st.integers(0, 999))


def random_routing(T, E, factor, seed):
    """Tokens with no, some or all experts, some padding, assignments in any order, queued at random."""
    rng = np.random.default_rng(seed)
    mask_T = rng.random(T) < 0.8
    chosen_TE = (rng.random((T, E)) < 0.6) & mask_T[:, None]
    columns = *np.nonzero(chosen_TE), (chosen_TE.cumsum(axis=1) - 1)[chosen_TE], rng.normal(size=chosen_TE.sum())
    shuffled = rng.permutation(chosen_TE.sum())
    scores_TE = np.zeros((2, T, E))
    r = routing.dropless_routing(*(column[shuffled] for column in columns), *scores_TE, Tokens.anonymous(mask_T))
    return capacity.keep_forward(r, (E + 1) // 2, factor, "random", rng)[0]


# Three tokens, two experts. Expert 0 has token 2 and then token 0; expert 1 has token 0 and no room for token 1.
EXAMPLE = routing.Routing(
    token_A=np.array([0, 0, 1, 2]), expert_A=np.array([0, 1, 1, 0]), rank_A=np.array([0, 1, 0, 0]),
    gate_A=np.array([0.5, 0.25, 2.0, 4.0]), slot_A=np.array([1, 0, 2, 0]), kept_A=np.array([True, True, False, True]),
    logit_TE=np.zeros((3, 2)), prob_TE=np.zeros((3, 2)),
    tokens=Tokens.anonymous(np.ones(3, bool)), capacity=2)
A_TD = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


def test_dispatch_by_hand():
    rows_ND, _ = dispatch.dispatch_forward(A_TD, EXAMPLE)
    assert rows_ND.tolist() == [[5, 6], [1, 2], [1, 2]]  # tokens 2, 0 for expert 0; token 0 for expert 1


def test_dispatch_backward_by_hand():
    _, cache = dispatch.dispatch_forward(A_TD, EXAMPLE)
    dx_TD = dispatch.dispatch_backward(np.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]), cache)
    assert dx_TD.tolist() == [[110, 220], [0, 0], [1, 2]]  # token 0: rows 1 and 2; token 1: none; token 2: row 0


def test_combine_by_hand():
    y_TD, _ = dispatch.combine_forward(np.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]), EXAMPLE)
    assert y_TD.tolist() == [[30, 60], [0, 0], [4, 8]]  # 0.5 * 10 + 0.25 * 100; dropped; 4 * 1


def test_combine_backward_by_hand():
    _, cache = dispatch.combine_forward(np.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]), EXAMPLE)
    dout_ND, dgate_N = dispatch.combine_backward(A_TD, cache)
    assert dout_ND.tolist() == [[20, 24], [0.5, 1], [0.25, 0.5]]  # gate times the token's dy
    assert dgate_N.tolist() == [5 * 1 + 6 * 2, 1 * 10 + 2 * 20, 1 * 100 + 2 * 200]  # dy times the row's output


@PLAIN
@given(**SIZES)
def test_dispatch_equals_a_loop_over_assignments(T, E, factor, seed):
    r = random_routing(T, E, factor, seed)
    x_TD = np.random.default_rng(seed).normal(size=(T, 3))
    rows_ND, cache = dispatch.dispatch_forward(x_TD, r)
    drows_ND = np.random.default_rng([seed, 1]).normal(size=rows_ND.shape)
    dx_TD = np.zeros_like(x_TD)
    for row, a in enumerate(r.kept_N):
        np.testing.assert_array_equal(rows_ND[row], x_TD[r.token_A[a]])
        dx_TD[r.token_A[a]] += drows_ND[row]
    np.testing.assert_allclose(dispatch.dispatch_backward(drows_ND, cache), dx_TD, rtol=1e-12, atol=1e-15)


@PLAIN
@given(**SIZES)
def test_combine_equals_a_loop_over_assignments(T, E, factor, seed):
    r = random_routing(T, E, factor, seed)
    out_ND = np.random.default_rng(seed).normal(size=(r.kept_A.sum(), 3))
    dy_TD = np.random.default_rng([seed, 1]).normal(size=(T, 3))
    y_TD, cache = dispatch.combine_forward(out_ND, r)
    dout_ND, dgate_N = dispatch.combine_backward(dy_TD, cache)
    expected_TD = np.zeros((T, 3))
    for row, a in enumerate(r.kept_N):
        expected_TD[r.token_A[a]] += r.gate_A[a] * out_ND[row]
        np.testing.assert_array_equal(dout_ND[row], r.gate_A[a] * dy_TD[r.token_A[a]])
        np.testing.assert_allclose(dgate_N[row], dy_TD[r.token_A[a]] @ out_ND[row], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(y_TD, expected_TD, rtol=1e-12, atol=1e-15)


@PLAIN
@given(**SIZES)
def test_there_and_back_with_gates_of_one_multiplies_a_token_by_its_kept_experts(T, E, factor, seed):
    r = random_routing(T, E, factor, seed)
    r = replace(r, gate_A=np.ones_like(r.gate_A))
    x_TD = np.arange(1.0, 3 * T + 1).reshape(T, 3)
    y_TD, _ = dispatch.combine_forward(dispatch.dispatch_forward(x_TD, r)[0], r)
    np.testing.assert_array_equal(y_TD, x_TD * np.bincount(r.token_A[r.kept_A], minlength=T)[:, None])


def test_one_token_in_many_rows_gathers_all_their_gradients():
    E = 30  # token 0 has every expert, token 1 none; `dx[token] += drows` would keep the last row alone
    expert_A, scores_TE = np.arange(E), np.zeros((2, E))
    r = routing.dropless_routing(np.zeros(E, int), expert_A, expert_A[::-1], np.ones(E), scores_TE, scores_TE,
                              Tokens.anonymous(np.ones(2, bool)))
    drows_ND = np.random.default_rng(0).normal(size=(E, 3))
    expected_TD = np.zeros((2, 3))
    np.add.at(expected_TD, r.token_A, drows_ND)
    _, cache = dispatch.dispatch_forward(np.zeros((2, 3)), r)
    np.testing.assert_allclose(dispatch.dispatch_backward(drows_ND, cache), expected_TD, rtol=1e-12)


@pytest.mark.parametrize("factor", [None, 0.3, 0.7, 1.0])
def test_with_and_without_a_gap_every_row_comes_back_to_its_token(factor):
    """Twelve tokens with two of five experts each; a token that lost a row has a gap in `row_TK`."""
    rng = np.random.default_rng(0)
    expert_TK = np.argsort(rng.random((12, 5)), axis=1, kind="stable")[:, :2]
    scores_TE = np.zeros((2, 12, 5))
    r = routing.dropless_routing(*gates.assignments_by_token(expert_TK, np.ones(12, bool)), rng.normal(size=24), *scores_TE,
                              Tokens.anonymous(np.ones(12, bool)))
    r, _ = capacity.keep_forward(r, 2, factor, "random", rng)
    assert r.kept_A.all() == (factor is None)
    x_TD = rng.normal(size=(12, 3))
    rows_ND, cache = dispatch.dispatch_forward(x_TD, r)
    y_TD, _ = dispatch.combine_forward(rows_ND, r)
    gate_T, kept_T = (np.array([sum(value_A[(r.token_A == t) & r.kept_A]) for t in range(12)])
                      for value_A in (r.gate_A, np.ones(24)))
    np.testing.assert_allclose(y_TD, gate_T[:, None] * x_TD, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(dispatch.dispatch_backward(rows_ND, cache), kept_T[:, None] * x_TD, rtol=1e-12)


def test_dropped_assignments_add_exactly_nothing_and_the_others_are_not_rescaled():
    r = random_routing(12, 5, 0.4, seed=0)
    out_ND = np.random.default_rng(0).normal(size=(r.kept_A.sum(), 3))
    y_TD, _ = dispatch.combine_forward(out_ND, r)
    kept_T = np.bincount(r.token_A[r.kept_A], minlength=12)
    assert {0, 1} <= set(kept_T[np.unique(r.token_A)])  # some lost all their experts, some all but one
    for t in np.flatnonzero(kept_T <= 1):
        a = np.flatnonzero((r.token_A == t) & r.kept_A)
        expected_D = r.gate_A[a[0]] * out_ND[r.kept_N.tolist().index(a[0])] if len(a) else np.zeros(3)
        np.testing.assert_array_equal(y_TD[t], expected_D)


def test_when_all_are_dropped_nothing_goes_in_and_nothing_comes_back():
    r = replace(EXAMPLE, kept_A=np.zeros(4, bool))
    rows_ND, cache = dispatch.dispatch_forward(A_TD, r)
    y_TD, combine_cache = dispatch.combine_forward(rows_ND, r)
    dout_ND, dgate_N = dispatch.combine_backward(A_TD, combine_cache)
    assert rows_ND.shape == dout_ND.shape == (0, 2)
    assert dgate_N.shape == (0,)
    np.testing.assert_array_equal(y_TD, np.zeros((3, 2)))
    np.testing.assert_array_equal(dispatch.dispatch_backward(dout_ND, cache), np.zeros((3, 2)))


def test_gradient_of_dispatch():
    r = random_routing(11, 4, 0.8, seed=0)
    report = gradcheck.check_pair("dispatch", lambda x_TD: dispatch.dispatch_forward(x_TD, r),
                                  dispatch.dispatch_backward, {"x_TD": np.random.default_rng(0).normal(size=(11, 5))})
    assert report.ok, report


def test_gradient_of_combine():
    r = random_routing(11, 4, 0.8, seed=0)
    arrays = {"out_ND": np.random.default_rng(0).normal(size=(r.kept_A.sum(), 5)), "gate_N": r.gate_A[r.kept_N]}

    def forward(out_ND, gate_N):
        gate_A = np.zeros(len(r.gate_A), gate_N.dtype)
        gate_A[r.kept_N] = gate_N
        return dispatch.combine_forward(out_ND, replace(r, gate_A=gate_A))

    report = gradcheck.check_pair("combine", forward, dispatch.combine_backward, arrays)
    assert report.ok, report


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_stays_and_nothing_passed_in_is_changed(dtype):
    r = replace(EXAMPLE, gate_A=EXAMPLE.gate_A.astype(dtype))
    x_TD, out_ND, dy_TD = A_TD.astype(dtype), A_TD[::-1].astype(dtype), 2 * A_TD.astype(dtype)
    for array in (x_TD, out_ND, dy_TD, r.mask_T, *vars(r).values()):
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    rows_ND, cache = dispatch.dispatch_forward(x_TD, r)
    y_TD, combine_cache = dispatch.combine_forward(out_ND, r)
    first, second = ((dispatch.dispatch_backward(out_ND, cache), *dispatch.combine_backward(dy_TD, combine_cache))
                     for _ in range(2))
    assert {array.dtype for array in (rows_ND, y_TD, *first)} == {np.dtype(dtype)}
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
