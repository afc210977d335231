"""The Sinkhorn router: its plan has even columns and rows that sum to 1, chooses in training only, gives no gates."""

import numpy as np
import pytest

from minimoe.moe.routers import sinkhorn
from tests import cases

LOGIT_TE = np.random.default_rng(0).normal(size=(60, 5))
FAVOURITE_TE = LOGIT_TE + [4, 0, 0, 0, 0]
LOGITS = {"random": LOGIT_TE, "one favourite": FAVOURITE_TE, "large": 5 * LOGIT_TE, "one token": LOGIT_TE[:1],
          "a ladder": LOGIT_TE + [0, 2, 4, 6, 8], "fewer tokens than experts": LOGIT_TE[:3]}


@pytest.mark.parametrize("case", LOGITS)
def test_the_plan_is_the_weights_scaled_by_rows_and_columns_until_both_are_even(case):
    """So log plan - logit is a number of the row plus one of the column."""
    logit_TE = LOGITS[case]
    plan_TE = sinkhorn.plan(logit_TE)
    np.testing.assert_allclose(plan_TE.sum(axis=1), 1, rtol=1e-14)
    np.testing.assert_allclose(plan_TE.sum(axis=0), len(logit_TE) / 5, rtol=1.01e-4)
    scale_TE = np.log(plan_TE) - logit_TE
    by_row_TE = scale_TE - scale_TE[:, :1]
    np.testing.assert_allclose(by_row_TE, np.tile(by_row_TE[:1], (len(scale_TE), 1)), atol=1e-11)


def test_a_plan_of_two_by_hand():
    """Weights (4, 1) and (1, 1).  Even rows and columns leave (p, 1 - p) and (1 - p, p).

    Scaling rows and columns keeps 4 * 1 / (1 * 1) = (p / (1 - p))^2, so p = 2/3.
    """
    plan_TE = sinkhorn.plan(np.log([[4.0, 1.0], [1.0, 1.0]]))
    np.testing.assert_allclose(plan_TE, [[2 / 3, 1 / 3], [1 / 3, 2 / 3]], atol=1e-4)
    assert sinkhorn.plan(np.zeros((0, 5))).shape == (0, 5)


def test_a_plan_that_is_even_enough_is_left_as_it_is():
    """Each expert is half of two tokens, a quarter of four: columns sum to 2 of 6, but for a millionth."""
    weight_TE = np.array([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]] * 2)
    weight_TE[0, 1] += 1e-6
    expected_TE = weight_TE / weight_TE.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(sinkhorn.plan(np.log(weight_TE)), expected_TE, rtol=1e-14)


def test_a_constant_on_the_scores_of_a_token_or_of_an_expert_changes_nothing():
    shift_T1 = np.random.default_rng(1).normal(scale=100, size=(60, 1))
    np.testing.assert_allclose(sinkhorn.plan(LOGIT_TE + shift_T1), sinkhorn.plan(LOGIT_TE), rtol=1e-10)
    shifted_TE = sinkhorn.plan(LOGIT_TE + [3.0, -2.0, 0.0, 1.0, -4.0])  # the load of an expert is given
    np.testing.assert_allclose(shifted_TE, sinkhorn.plan(LOGIT_TE), rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_expert_that_every_token_shuns_gets_its_share_and_a_token_that_shuns_all_but_one_goes_there(dtype):
    """exp(-1e4) is 0, which no factor scales up to anything."""
    plan_TE = sinkhorn.plan((LOGIT_TE + [0, 0, -1e4, 0, 0]).astype(dtype))
    assert plan_TE.dtype == dtype
    np.testing.assert_allclose(plan_TE.sum(axis=0), 12, rtol=2e-4)
    logit_TE = LOGIT_TE.astype(dtype)
    logit_TE[7] = [-1e4, -1e4, -1e4, 0, -1e4]
    np.testing.assert_allclose(sinkhorn.plan(logit_TE)[7], [0, 0, 0, 1, 0], atol=1e-15)


def test_training_chooses_by_the_plan_and_evaluation_by_the_scores():
    """Of 60 tokens with one choice each, a fifth is 12."""
    trained, evaluated = (cases.route("sinkhorn", FAVOURITE_TE, training)[0] for training in (True, False))
    for r, choice_TE in ((trained, sinkhorn.plan(FAVOURITE_TE)), (evaluated, FAVOURITE_TE)):
        assert cases.choices(r) == [sorted(range(5), key=lambda e, row_E=row_E: -row_E[e])[:2] for row_E in choice_TE]
    one, alone = (cases.route("sinkhorn", FAVOURITE_TE, training, top_k=1)[0] for training in (True, False))
    assert one.count_E.max() < 18 and alone.count_E[0] > 50


@pytest.mark.parametrize("training", [True, False])
def test_gates_come_from_the_plain_softmax(training):
    weight_TE = np.exp(FAVOURITE_TE)
    for renormalize in (True, False):
        r, _ = cases.route("sinkhorn", FAVOURITE_TE, training, renormalize=renormalize)
        weight_TK = weight_TE[r.token_A, r.expert_A].reshape(60, 2)
        total_T1 = (weight_TK if renormalize else weight_TE).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(r.gate_A.reshape(60, 2), weight_TK / total_T1, rtol=1e-12)


def test_padding_has_no_part_in_the_plan():
    mask_T = np.arange(60) % 3 > 0
    with_padding, _ = cases.route("sinkhorn", FAVOURITE_TE, training=True, mask_T=mask_T)
    without, _ = cases.route("sinkhorn", FAVOURITE_TE[mask_T], training=True)
    assert [experts for experts in cases.choices(with_padding) if experts] == cases.choices(without)
