"""FLOPs of sparse training by the papers' formulas, by hand; what masks save is tested with `savings`."""

from dataclasses import replace

import pytest

from minimoe.config import ModelConfig, TrainConfig
from minimoe.cost import sparse

RUN = TrainConfig(n_steps=8, warmup_steps=0, sparsity=0.8, sparsity_every=2)
DENSE = ModelConfig(vocab_size=10, d_model=4, n_layers=1, n_heads=1, d_hidden=6, n_experts=1, top_k=1, max_sequence=3)


@pytest.mark.parametrize(("dynamic", "expected"), [
    ("static", 60), ("set", 60), ("rigl", (60 * 2 + 40 + 100) / 3), ("snfs", 40 + 100),
    # masks change after steps 2 and 4, to 1 - (1 - 2/4)^3 = 7/8 and all of the zeros: 0 0 7/8 7/8 1 1 1 1, mean 23/32
    ("gradual", 3 * (100 - 23 / 32 * 80)), ("movement", 2 * (100 - 23 / 32 * 80) + 100)])
def test_a_training_step_by_hand_with_100_flops_forward_dense_and_20_sparse(dynamic, expected):
    assert sparse.training_flops(100, 20, replace(RUN, dynamic=dynamic)) == pytest.approx(expected)
    assert sparse.training_flops(100, 20, replace(RUN, sparsity=0.0)) == 300
    every_100 = TrainConfig(sparsity=0.8, dynamic="rigl")  # RigL's table 2: .23 and .10 of the dense run, as SET has
    assert [round(sparse.training_flops(1, f, every_100) / 3, 2) for f in (0.23, 0.1)] == [0.23, 0.1]


def test_forward_flops_and_those_of_pruning_by_hand():
    """Attention 4 x 16 weights, network 3 x 24, router 4, head 40, scores 4 x 4 x 3: 2 (136 + 4 + 40) + 48 = 408.

    Each of the inverses 2 D^3, D = 4 in all but w_down, which has 6.
    """
    assert sparse.sparse_flops(DENSE, 0.5) == (408, 408 - 136)
    assert sparse.pruning_flops(DENSE, None, 10) == 0 and sparse.pruning_flops(DENSE, "neurons", 10) == 3 * 4080
    squares = 4 * (20 * 16 + 128 + 64) + 2 * (20 * 16 + 128 + 96) + (20 * 36 + 432 + 144)
    assert sparse.pruning_flops(DENSE, "sparsegpt", 10) == 2 * 4080 + squares
