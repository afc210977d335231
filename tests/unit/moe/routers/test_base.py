"""BASE: in training the best of all even assignments, in evaluation each token's best expert; sigmoid gates."""

import numpy as np
import pytest

from minimoe.moe import linear_assignment
from tests import cases

LOGIT_TE = np.random.default_rng(0).normal(size=(12, 4)) + [4, 0, 0, 0]


def test_by_hand():
    """Both tokens prefer expert 0, the second one much more.  Sigmoids of ln 3, 0: 3/4, 1/2; softmax 3/4, 1/4."""
    logit_TE = np.log([[3.0, 1.0], [9.0, 1.0]])
    for training, expert_A, gate_A in ((True, [1, 0], [1 / 2, 9 / 10]), (False, [0, 0], [3 / 4, 9 / 10])):
        r, _ = cases.route("base", logit_TE, training)
        assert r.expert_A.tolist() == expert_A and r.rank_A.tolist() == [0, 0]
        np.testing.assert_allclose(r.gate_A, gate_A, rtol=1e-14)
        np.testing.assert_allclose(r.prob_TE, [[3 / 4, 1 / 4], [9 / 10, 1 / 10]], rtol=1e-14)


def test_training_uses_the_even_assignment_and_evaluation_the_best():
    trained, evaluated = (cases.route("base", LOGIT_TE, training)[0] for training in (True, False))
    assert trained.count_E.tolist() == [3, 3, 3, 3]
    np.testing.assert_array_equal(trained.expert_A, linear_assignment.balanced_assignment(LOGIT_TE))
    np.testing.assert_array_equal(evaluated.expert_A, LOGIT_TE.argmax(axis=1))
    assert evaluated.count_E[0] > 9


@pytest.mark.parametrize("training", [True, False])
def test_padding_has_no_part_in_the_assignment(training):
    mask_T = np.arange(12) % 3 > 0
    r, _ = cases.route("base", LOGIT_TE, training, mask_T=mask_T)
    expected, _ = cases.route("base", LOGIT_TE[mask_T], training)
    np.testing.assert_array_equal(r.expert_A, expected.expert_A)
    np.testing.assert_array_equal(r.token_A, np.flatnonzero(mask_T))
