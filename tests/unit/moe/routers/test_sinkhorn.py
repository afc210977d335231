"""The Sinkhorn router: its plan has even columns and whole rows, chooses in training alone, and weighs nothing.

Most tests route one-hot tokens, x = identity: then the router's weights are its scores.
"""

import numpy as np
import pytest

from minimoe.moe.routers import sinkhorn
from tests.one_hot import choices, route

LOGIT_TE = np.random.default_rng(0).normal(size=(60, 5))
LOGITS = {"random": LOGIT_TE, "one favourite": LOGIT_TE + [4, 0, 0, 0, 0], "large": 5 * LOGIT_TE,
          "a ladder": LOGIT_TE + [0, 2, 4, 6, 8], "one token": LOGIT_TE[:1], "fewer tokens than experts": LOGIT_TE[:3]}
FAVOURITE_TE = LOGITS["one favourite"]


@pytest.mark.parametrize("case", LOGITS)
def test_rows_of_the_plan_sum_to_one_and_columns_to_their_share(case):
    logit_TE = LOGITS[case]
    plan_TE = sinkhorn.plan(logit_TE)
    np.testing.assert_allclose(plan_TE.sum(axis=1), 1, rtol=1e-14)
    np.testing.assert_allclose(plan_TE.sum(axis=0), len(logit_TE) / 5, rtol=1.01e-4)
    assert (plan_TE > 0).all()


def test_a_plan_of_two_by_hand():
    """Weights (4, 1) and (1, 1).  Even rows and columns leave (p, 1 - p) and (1 - p, p).

    Scaling rows and columns keeps 4 * 1 / (1 * 1) = (p / (1 - p))^2, so p = 2/3.
    """
    plan_TE = sinkhorn.plan(np.log([[4.0, 1.0], [1.0, 1.0]]))
    np.testing.assert_allclose(plan_TE, [[2 / 3, 1 / 3], [1 / 3, 2 / 3]], atol=1e-4)


@pytest.mark.parametrize("case", LOGITS)
def test_the_plan_is_the_weights_scaled_by_rows_and_columns(case):
    """So log plan - logit is a number of the row plus one of the column."""
    scale_TE = np.log(sinkhorn.plan(LOGITS[case])) - LOGITS[case]
    by_row_TE = scale_TE - scale_TE[:, :1]
    np.testing.assert_allclose(by_row_TE, np.tile(by_row_TE[:1], (len(scale_TE), 1)), atol=1e-11)


def test_a_constant_on_all_scores_of_a_token_changes_nothing():
    shift_T1 = np.random.default_rng(1).normal(scale=100, size=(60, 1))
    np.testing.assert_allclose(sinkhorn.plan(LOGIT_TE + shift_T1), sinkhorn.plan(LOGIT_TE), rtol=1e-10)


def test_a_constant_on_all_scores_of_an_expert_changes_nothing_since_its_load_is_given():
    shift_E = np.array([3.0, -2.0, 0.0, 1.0, -4.0])
    np.testing.assert_allclose(sinkhorn.plan(LOGIT_TE + shift_E), sinkhorn.plan(LOGIT_TE), rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_expert_that_every_token_shuns_gets_its_share_too(dtype):
    """exp(-1e4) is 0, which no factor scales up to anything."""
    logit_TE = (LOGIT_TE + [0, 0, -1e4, 0, 0]).astype(dtype)
    plan_TE = sinkhorn.plan(logit_TE)
    assert plan_TE.dtype == dtype
    np.testing.assert_allclose(plan_TE.sum(axis=0), 12, rtol=2e-4)


def test_a_token_that_shuns_all_experts_but_one_goes_there():
    logit_TE = LOGIT_TE.copy()
    logit_TE[7] = [-1e4, -1e4, -1e4, 0, -1e4]
    plan_TE = sinkhorn.plan(logit_TE)
    np.testing.assert_allclose(plan_TE[7], [0, 0, 0, 1, 0], atol=1e-15)
    np.testing.assert_allclose(plan_TE.sum(axis=0), 12, rtol=1.01e-4)


def test_training_chooses_the_largest_entries_of_the_plan():
    r, _ = route("sinkhorn", FAVOURITE_TE, training=True)
    plan_TE = sinkhorn.plan(FAVOURITE_TE)
    assert choices(r) == [sorted(range(5), key=lambda e, row_E=row_E: -row_E[e])[:2] for row_E in plan_TE]


def test_evaluation_chooses_the_best_scores():
    r, _ = route("sinkhorn", FAVOURITE_TE)
    assert choices(r) == [sorted(range(5), key=lambda e, row_E=row_E: -row_E[e])[:2] for row_E in FAVOURITE_TE]


def test_a_favourite_takes_all_in_evaluation_and_hardly_more_than_its_share_in_training():
    """Of 60 tokens with one choice each, a fifth is 12."""
    trained, _ = route("sinkhorn", FAVOURITE_TE, training=True, top_k=1)
    evaluated, _ = route("sinkhorn", FAVOURITE_TE, top_k=1)
    assert evaluated.count_E[0] > 50
    assert trained.count_E.max() < 18


@pytest.mark.parametrize("training", [True, False])
def test_gates_come_from_the_plain_softmax(training):
    r, _ = route("sinkhorn", FAVOURITE_TE, training=training)
    weight_TK = np.exp(FAVOURITE_TE)[r.token_A, r.expert_A].reshape(60, 2)
    np.testing.assert_allclose(r.gate_A.reshape(60, 2), weight_TK / weight_TK.sum(axis=1, keepdims=True), rtol=1e-12)
    raw, _ = route("sinkhorn", FAVOURITE_TE, training=training, renormalize=False)
    total_T1 = np.exp(FAVOURITE_TE).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(raw.gate_A.reshape(60, 2), weight_TK / total_T1, rtol=1e-12)


def test_padding_has_no_part_in_the_plan():
    mask_T = np.arange(60) % 3 > 0
    with_padding, _ = route("sinkhorn", FAVOURITE_TE, training=True, mask_T=mask_T)
    without, _ = route("sinkhorn", FAVOURITE_TE[mask_T], training=True)
    assert [experts for experts in choices(with_padding) if experts] == choices(without)


def test_a_plan_that_is_even_enough_is_left_as_it_is():
    """Each expert is half of two tokens, a quarter of four: columns sum to 2 of 6, but for a millionth."""
    weight_TE = np.array([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]] * 2)
    weight_TE[0, 1] += 1e-6
    expected_TE = weight_TE / weight_TE.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(sinkhorn.plan(np.log(weight_TE)), expected_TE, rtol=1e-14)


def test_a_plan_for_nobody_is_empty():
    assert sinkhorn.plan(np.zeros((0, 5))).shape == (0, 5)
