"""Densities, schedules, and one step of SET, RigL and SNFS: by hand, and that weights are neither lost nor gained."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimoe.sparsity import densities, dynamic, schedules
from tests import cases

W = np.array([5.0, -1.0, 0.5, 0.0, 0.0, -3.0])
MASK = np.array([True, True, True, False, False, True])
GRADIENT = np.array([9.0, 2.0, 0.1, 1.0, -3.0, 9.0])


@pytest.mark.parametrize("regrown, expected, grown", [
    ("value", [5, -1, 0, 0, 0, -3], [4]), ("zero", [5, 0, 0, 0, 0, -3], [1, 4])])
def test_a_step_of_rigl_by_hand(regrown, expected, grown):
    """Half of 4 weights go: .5 and -1.  Of the free places 1, 2, 3, 4 the gradient is largest at 4 and 1."""
    w, mask, new = dynamic.rigl(W, MASK, GRADIENT, 0.5, regrown)
    assert w.tolist() == expected and mask.nonzero()[0].tolist() == [0, 1, 4, 5] and new.nonzero()[0].tolist() == grown
    assert W[2] == 0.5 and MASK[2]  # what was given is as it was
    assert dynamic.rigl(W, MASK, GRADIENT, 0.49)[1].nonzero()[0].tolist() == [0, 1, 4, 5]  # floor(1.96) = 1: .5 goes


def test_a_step_of_set_by_hand_and_by_brute_force():
    """Half of {5, .5} and half of {-1, -3} go: .5 and -1.  34 % of 2 is none.  Of 96 weights, 30 % of each sign."""
    w, mask, new = dynamic.set(W, MASK, 0.5, np.random.default_rng(0))
    assert mask.sum() == 4 and mask[[0, 5]].all() and not w[new].any() and not (new & MASK).any()
    assert dynamic.set(W, MASK, 0.34, np.random.default_rng(0))[1].tolist() == MASK.tolist()
    rng = np.random.default_rng(1)
    w, mask = rng.normal(1.0, 1.0, 96), np.ones(96, bool)  # mostly positive
    for sign in (1, -1):
        sizes = sorted(sign * w[sign * w > 0])
        mask[np.isin(sign * w, sizes[:math.floor(0.3 * len(sizes))])] = False
    after, *_ = dynamic.set(w, np.ones(96, bool), 0.3, rng, "zero")
    np.testing.assert_array_equal(after, np.where(mask, w, 0))


def test_a_step_of_snfs_moves_weights_to_where_the_momentum_is():
    """Half of 4 go in each: 4 in all.  Means of |momentum| of the weights 1 and 3: shares of 1 and 3."""
    params = {"a": W, "b": -W, "c": W}
    momenta = {"a": np.array([1, 1, 1, 0, 9, 1.0]), "b": np.array([3, 3, 3, 5, 4, 3.0]), "c": W}
    new_params, masks = dynamic.snfs(params, {"a": MASK, "b": MASK}, momenta, 0.5)
    assert masks["a"].nonzero()[0].tolist() == [0, 4, 5]  # where |momentum| is 9
    assert masks["b"].nonzero()[0].tolist() == [0, 1, 3, 4, 5]  # 5, 4, and the first 3: -W[1] has come back
    assert new_params["b"].tolist() == [-5, 1, 0, 0, 0, 3] and new_params["c"] is W and "c" not in masks


def test_shares_are_whole_fit_and_add_up():
    assert dynamic.shares(7, {"a": 1.0, "b": 1.0, "c": 5.0}, {"a": 9, "b": 9, "c": 9}) == {"a": 1, "b": 1, "c": 5}
    assert dynamic.shares(7, {"a": 1.0, "b": 1.0, "c": 5.0}, {"a": 9, "b": 1, "c": 2}) == {"a": 4, "b": 1, "c": 2}
    assert dynamic.shares(3, {"a": 0.0, "b": 0.0}, {"a": 9, "b": 9}) == {"a": 2, "b": 1}


@cases.FEW
@given(st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["value", "zero"]))
def test_weights_are_neither_lost_nor_gained_and_start_as_the_rule_says(seed, density, fraction, regrown):
    """Ties too, and weights of exactly 0."""
    rng = np.random.default_rng(seed)
    mask, g = rng.random((5, 7)) < density, rng.integers(-2, 3, (5, 7)).astype(float)
    w = rng.integers(-2, 3, (5, 7)) * mask * 1.0
    for after, now, grown in (dynamic.rigl(w, mask, g, fraction, regrown),
                              dynamic.set(w, mask, fraction, rng, regrown)):
        assert now.sum() == mask.sum() and not (grown & ~now).any() and not after[~now | grown].any()
        assert (after == w)[now & ~grown].all() and (regrown == "zero" or not (grown & mask).any())
    after, masks = dynamic.snfs({"a": w, "b": w}, {"a": mask, "b": ~mask}, {"a": g, "b": g}, fraction, regrown)
    assert sum(m.sum() for m in masks.values()) == w.size and not any(after[name][~masks[name]].any() for name in masks)


def test_a_place_with_a_large_dense_gradient_is_grown():
    for place in np.flatnonzero(~MASK):
        assert dynamic.rigl(W, MASK, GRADIENT + 99 * (np.arange(6) == place), 0.25)[2].nonzero()[0].tolist() == [place]


def test_schedules_by_hand():
    """Half a cosine; a cube: half way 1 - 1/8 of the sparsity is there."""
    assert [dynamic.drop_fraction(t, 0.4, 8) for t in (0, 4, 8, 9)] == pytest.approx([0.4, 0.2, 0, 0], abs=1e-16)
    assert [schedules.cubic(t, 2, 6, 0.8, 0.1) for t in (0, 2, 4, 6, 9)] == pytest.approx([0.1, 0.1, 0.7125, 0.8, 0.8])
    assert schedules.rewind({"a": W, "b": W}, {"a": MASK})["a"].tolist() == [5, -1, 0.5, 0, 0, -3]


def test_densities_by_hand():
    """Raw 12/20 and 110/1000; .1 of 20 + 1000 weights is 102 = eps * (12 + 110).  At .5 there are 510: the small matrix
    would have over 1, so it gets 20 and the other 490."""
    shapes = {"a": (10, 2), "b": (100, 10)}
    assert densities.uniform(shapes, 0.1) == {"a": 0.1, "b": 0.1}
    assert densities.erdos_renyi(shapes, 0.1) == pytest.approx({"a": 102 / 122 * 0.6, "b": 102 / 122 * 0.11})
    assert densities.erdos_renyi(shapes, 0.5) == pytest.approx({"a": 1.0, "b": 0.49})
    stack = {"a": (10, 2), "b": (4, 25, 10)}  # an expert has (25 + 10) / 250; the stack (4 + 25 + 10) / 1000
    each, whole = densities.erdos_renyi(stack, 0.1), densities.erdos_renyi(stack, 0.1, stack=True)
    assert each["a"] == pytest.approx(102 / 152 * 0.6) and whole["a"] == 1.0 and whole["b"] == pytest.approx(0.082)
    assert [densities.count_zeros(10, d) for d in (0.9, 0.1, 0.75, 1)] == [1, 9, 2, 0]


@cases.FEW
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5), st.floats(0.01, 1))
def test_densities_are_shares_and_add_up_to_one_weight_per_matrix(shapes, density):
    shapes = dict(enumerate(shapes))
    found = densities.erdos_renyi(shapes, density)
    assert all(0 < d <= 1 for d in found.values())
    size = {i: a * b for i, (a, b) in shapes.items()}
    total = sum(size.values()) * density
    assert total - 1e-6 <= sum(found[i] * size[i] for i in size) <= total + len(size)
    eps = [d * size[i] / sum(shapes[i]) for i, d in found.items() if d < 1]
    assert not eps or max(eps) == pytest.approx(min(eps))
    rng = np.random.default_rng(0)
    masks = {i: densities.random_mask(shapes[i], d, rng) for i, d in found.items()}
    assert abs(sum(mask.sum() for mask in masks.values()) - total) <= 2 * len(size)


@pytest.mark.parametrize("call, message", [
    *((lambda d=d: densities.erdos_renyi({"a": (2, 3)}, d), f"density = {d!r}: must be a share") for d in (0, 2, "a")),
    (lambda: densities.random_mask((8, 6), 2, np.random.default_rng(0)), "density = 2: must be a share"),
    (lambda: densities.uniform({"a": (2,)}, 0.5), r"shapes\['a'\] = \(2,\): must be that of a matrix"),
    (lambda: densities.uniform({"a": 3}, 0.5), r"shapes\['a'\] = 3: must be that of a matrix"),
    (lambda: dynamic.rigl(W, MASK[:3], GRADIENT, 0.5), r"mask is bool \(3,\): must be bool \(6,\)"),
    *((lambda g=g: dynamic.rigl(W, MASK, g, 0.5), "gradient has shape") for g in (GRADIENT[:3], GRADIENT * np.nan)),
    (lambda: dynamic.rigl(W * np.nan, MASK, GRADIENT, 0.5), "w must be an array of finite numbers"),
    (lambda: dynamic.snfs({"a": W}, {"a": MASK}, {}, 0.5), r"masks\['a'\]: there is no such parameter, or no momentum"),
    (lambda: dynamic.snfs({"a": W}, {"a": MASK}, {"a": W[:3]}, 0.5), r"momenta\['a'\] has shape \(3,\)"),
    (lambda: dynamic.drop_fraction(1, 0.3, 0), "last_step = 0: must be above 0"),
    (lambda: dynamic.drop_fraction(1, 3, 9), "initial = 3: must be a share"),
    (lambda: dynamic.rigl(W, MASK, GRADIENT, 1.5), "fraction = 1.5"),
    (lambda: dynamic.set(W, MASK, 0.5, None, "one"), "regrown = 'one'")])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
