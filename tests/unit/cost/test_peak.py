"""The peak memory of a training step: its moments by hand, and the whole as measured."""

from dataclasses import replace

import pytest

from minimoe import model
from minimoe.config import ModelConfig, TrainConfig
from minimoe.cost import counting, memory, peak
from minimoe.moe.routers import ROUTERS
from minimoe.training import data, loop
from tests.cases import with_router
from tests.unit.cost.covering import TINY

DEEP = ModelConfig(d_model=64, n_layers=2, n_heads=4, d_hidden=128, n_experts=8, top_k=2, max_sequence=64)
THIN = ModelConfig(d_model=16, n_layers=1, n_heads=4, d_hidden=16, n_experts=64, top_k=2, max_sequence=64)
TRACED = {
    "two groups": (DEEP, dict(groups=2)),
    "wide dense layer first": (replace(DEEP, first_dense_layers=1, d_dense=1024), dict()),
    "large vocabulary, tied": (replace(DEEP, n_layers=1, vocab_size=4000, tie_embeddings=True), dict()),
    "long sequence": (replace(DEEP, n_layers=1, max_sequence=512), dict(batch=2, sequence=512)),
    "padded": (replace(DEEP, capacity_factor=2.0, pad_experts=True), dict()),
    "dropped": (replace(DEEP, capacity_factor=0.5), dict()), "soft": (replace(DEEP, router="soft"), dict()),
    "micro-batches in groups, held": (replace(DEEP, global_balance=True), dict(accumulate=2, groups=2, batch=4)),
    "routings wait": (replace(THIN, top_k=8, max_sequence=32), dict(accumulate=4, batch=32, sequence=32)),
    "eight shared experts": (replace(DEEP, n_layers=1, n_shared_experts=8), dict()),
    "attention of few keys": (replace(DEEP, n_layers=1, n_heads=8, n_kv_heads=1, d_hidden=16, max_sequence=256),
                              dict(batch=4, sequence=256)),
    "choice decides": (replace(THIN, router="hash", n_experts=512, top_k=1, d_hidden=2, vocab_size=5), dict(batch=32)),
    "all losses": (replace(THIN, top_k=1, n_devices=2, sequence_coef=0.1, entropy_coef=0.1, device_coef=0.1),
                   dict(batch=32)),
} | {name: (with_router(THIN, name), dict(batch=32)) for name in ROUTERS}


@pytest.mark.parametrize("case", TRACED)
def test_the_peak_of_a_training_step_is_as_by_formula(case):
    config, fields = TRACED[case]
    training, rows = TrainConfig(**dict(n_steps=10, batch=8, sequence=64) | fields), None
    text = data.random_text(config, training)
    if config.moe_layers:
        counted = counting.count(config, training.batch // training.groups, training.sequence)
        rows = {i: r.run for i, r in counted.rows.items()}
    traced = memory.peak_bytes(lambda: loop.step_once(loop.new_state(config, training, text), text))
    found = peak.peak_formula(config, training.batch, training.sequence, training.groups, 1, training.accumulate, rows)
    assert found == pytest.approx(traced, rel=0.05)  # 0.1 is what is promised


def test_the_peak_of_groups_that_run_at_the_same_time():
    size = 4 * sum(array.size for array in model.init_params(DEEP).values())
    # weights and two moments, a gradient for each group that runs, and one sum that waits
    for groups, threads, copies, held in ((1, 1, 4, 1), (2, 1, 5, 1), (2, 8, 5, 2), (4, 2, 6, 2)):
        of_group = peak.peak_formula(DEEP, 8 // groups, 64) - 4 * size
        # of groups that are done the Routings of two layers: two scores of 8 experts, 13 of each of 2 assignments
        done = 4 * (groups - held) * 2 * (8 // groups * 64) * (2 * 8 + 13 * 2)
        assert peak.peak_formula(DEEP, 8, 64, groups, threads) == copies * size + held * of_group + done


HAND = replace(TINY, n_experts=4, router="base")


def test_the_moments_of_a_step_by_hand():
    # T = 6, D = 4, 12 rows, 6 an expert.  to the end: logits 2*30, two of 24, of the routing 3*12 + 12: 156
    # head 4*5 + 4 = 24 of weights.  experts: 72 of weights, rows 2*48, working 6 * (3*3 + 2*4) + 6*4 = 126
    # attention: 84 of weights made meanwhile; block 72, mix and queries 48, keys and values 24, weights 16;
    # joining 72 + 16 is more than pairs 2*2*9 and mix once more, 24.  embedding: 52 more weights; 24 + 2*20
    # choice: one of 12 and one of 24 are there, but not yet norms 48, probabilities 30, rows 12 * (8 + 9)
    assert peak.moments(replace(TINY, top_k=2), 2, 3) == {
        "head": 156 + 24 + 24, "moe of layer 0": 156 + 24 + 72 + 96 + 126,
        "attention of layer 0": 156 + 24 + 84 + 72 + 48 + 24 + 16 + 72 + 16,
        "embedding": 156 + 24 + 84 + 52 + 24 + 40, "choice": 12 + 24 - 48 - 30 - 204}


    # a router's choice can be the fullest part of its layer: 4 experts, one each
    # T = 6.  to the end 60 + 48 + 24 + 6, head 24; experts 3*48 of weights, rows 2*24; four of 24, input twice 24
    assert peak.moments(HAND, 2, 3)["moe of layer 0"] == 138 + 24 + 144 + 48 + 4 * 24 + 2 * 24
    # dropped rows are copied once more to be added up.  hash has no gradient: of the 9 rows 2*36; to be added: 36, the
    # sum and a choice of each token 24 each
    config = replace(HAND, router="hash", top_k=2)
    assert peak.moments(config, 2, 3, {0: 9})["moe of layer 0"] == 60 + 48 + 24 + 12 + 24 + 144 + 72 + 36 + 48


def test_the_moments_of_a_wide_dense_layer_and_a_long_sequence_by_hand():
    # T = 30.  to the end 2*150 + 2*120, head 24; four of 30*20 and the weights of one matrix, 80
    # attention: 4 + 240 of weights meanwhile; block 360, mix and queries 240, keys and values 120, weights 16;
    # pairs 2*30*30, and as two heads share their keys mix once more, 120
    found = peak.moments(replace(HAND, first_dense_layers=1, d_dense=20, max_sequence=30), 1, 30)
    assert found["dense of layer 0"] == 540 + 24 + 4 * 600 + 80
    assert found["attention of layer 0"] == 540 + 24 + 244 + 360 + 240 + 120 + 16 + 1800 + 120


def test_the_moments_of_soft_slots_by_hand():
    # T = 6, 2 experts of 2 slots, Z = 4: 8 rows of 2 sequences, sorted anew.  To the end 60 + 48, head 24; experts 72
    # of weights.  working: three of 8*4, pairs 24, four rows an expert with 4 * (3*3 + 2*4) and 16 = 204
    # after: rows out and in, twice 2*32 = 128; mixing 24 + 3*24 = 96 is less than unit 3*24 + 2*24 = 120
    found = peak.moments(replace(TINY, router="soft", max_sequence=4), 2, 3)
    assert found["soft of layer 0"] == 108 + 24 + 128 + 120 + 72
