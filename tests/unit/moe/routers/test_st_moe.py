"""ST-MoE: the second expert is always used from a fifth of the gates on, less often below; never, in evaluation."""

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe.routers import st_moe
from minimoe.moe.routing import Tokens
from tests import cases

N, SECOND = 4000, np.array([0.02, 0.05, 0.15, 0.25, 0.5])
"""Tokens of each kind; share of the second expert in the gates of each kind."""


@pytest.mark.parametrize(("training", "expected"), [
    (True, [0.1, 0.25, 0.75, 1, 1]),  # min(1, g / 0.2), seen with the spread of so many coin tosses
    (False, [0, 0, 0, 1, 1])])
def test_how_often_the_second_is_used_and_gates_are_shares_of_the_two_best_whether_or_not_it_is(training, expected):
    scores_TE, p = np.repeat(np.log(np.stack([1 - SECOND, SECOND], axis=1)), N, axis=0), np.array(expected)
    config = ModelConfig(d_model=2, n_heads=1, n_experts=2, top_k=2, router="st_moe")
    r, _ = st_moe.forward(scores_TE, {"w_router_DE": np.eye(2)}, config, Tokens.anonymous(np.ones(5 * N, bool)),
                          training=training, rng=np.random.default_rng(0) if training else None)
    kind_A, second = r.token_A // N, r.rank_A == 1
    assert (np.abs(np.bincount(kind_A[second], minlength=5) / N - p) <= 4 * np.sqrt(p * (1 - p) / N)).all()
    assert r.token_A[~second].tolist() == list(range(5 * N))
    np.testing.assert_allclose(r.gate_A, np.where(second, SECOND[kind_A], 1 - SECOND[kind_A]), rtol=1e-13)


def test_the_share_is_that_among_the_two_best_by_hand():
    """Weights 3, 1, 1, 1, 1: the second has a quarter of the two best's, which is enough, though a seventh of all.

    Weights 8 and a little less than 2: not quite a fifth.
    """
    r, _ = cases.route("st_moe", np.log([[3.0, 1.0, 1.0, 1.0, 1.0], [8.0, 2.0 - 1e-9, 0.5, 0.5, 0.5]]))
    assert cases.choices(r) == [[0, 1], [0]]
    np.testing.assert_allclose(r.gate_A, [3 / 4, 1 / 4, 4 / 5])
