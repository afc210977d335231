"""Bytes: formats, weights and caches by hand, checkpoints as published, activations as measured in the caches."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import model
from minimoe.config import ModelConfig
from minimoe.cost import architecture, counting, memory, ours, published
from minimoe.generation import decoding
from tests.cases import with_router
from tests.unit.cost.covering import CONFIG, COVERING, TINY

SPARSE = architecture.Architecture(vocab=5, d_model=4, n_layers=2, n_heads=2, n_kv_heads=1, n_routed_experts=4,
                                   top_k=2, expert_hidden=3, biases="experts", dense_first_layers=1, dense_ffn_hidden=7)


def test_bytes_of_formats_and_weights_by_hand():
    # eight numbers, with their share of the scale
    assert {name: form.bytes(8) for name, form in memory.FORMATS.items()} == {
        "float32": 32, "bf16": 16, "fp8": 8 + 32 / 16384, "int8": 8 + 16 / 64, "mxfp8": 8 + 8 / 32, "int4": 4 + 16 / 64,
        "mxfp4": 4.25}
    # embedding and head 20 each; norms 2*8 + 4; attention 2 * (16 + 8 + 8 + 16); dense 3*28; router 16: rest 256
    # an expert has 3*12 in its matrices and biases of 2*3 + 4: 4 of them 144, and 40 that are of the rest
    assert memory.weight_bytes(SPARSE, "float32") == 4 * (256 + 144 + 40)
    assert memory.weight_bytes(SPARSE) == 2 * (256 + 144 + 40)
    assert memory.weight_bytes(SPARSE, "bf16", "mxfp4") == 2 * (256 + 40) + 144 * 4.25 / 8


def test_checkpoints_of_gpt_oss_are_as_large_as_published():
    # gpt-oss model card, arXiv:2508.10925, table 1: experts in MXFP4, the rest in bf16
    for fields, gib in ((dict(), 12.8), (dict(n_layers=36, n_routed_experts=128), 60.8)):
        arch = replace(published.find("gpt-oss-20b").arch, **fields)
        assert round(memory.weight_bytes(arch, "bf16", "mxfp4") / 2**30, 1) == gib
    # ZeRO, sec. 3.1: 2 + 2 + (4 + 4 + 4) in mixed precision; ours in float32 4 + 4 + 2 * 4, of 180 numbers
    assert memory.ADAM_BYTES == {"float32": 16, "mixed precision": 16}
    assert memory.step_memory(TINY, batch=2, sequence=3)[:3] == (720, 720, 1440)


def test_numbers_of_the_cache():
    # two layers, two key heads of width 5, key and value.  DeepSeek-V2, table 1: as a GQA cache with 2.25 groups.
    # Switch: 12 decoder layers, each with keys and values of its own sequence and of the encoder's, 12 heads of 64
    assert memory.kv_numbers(replace(SPARSE, head_dim=5, n_kv_heads=None)) == 2 * 2 * (5 + 5)
    assert memory.kv_numbers(published.find("deepseek-v3").arch) == 61 * 2 * 2.25 * 128
    assert memory.kv_numbers(published.find("switch-base-8").arch) == 12 * 2 * 2 * 12 * 64
    # of two layers one keeps 4 tokens: a token of a layer has 2 * (5 + 3) numbers.  A linear one keeps 2 * 5 * 3
    window = replace(SPARSE, head_dim=5, n_kv_heads=None, v_head_dim=3, window=4, attention=("full", "window"))
    for context, kept in ((3, 3 + 3), (4, 4 + 4), (5, 5 + 4), (100, 100 + 4)):
        assert memory.kv_numbers(window, context) == 16 * kept
    assert memory.kv_numbers(replace(window, attention=("linear", "window")), 100) == 30 + 16 * 4
    # gpt-oss-20b: 2 * 8 * 64 numbers of two bytes; 12 layers keep all of 131,072 tokens, 12 keep 128
    oss = memory.kv_numbers(published.find("gpt-oss-20b").arch, 131_072)
    assert 2 * oss == 2 * 1024 * 12 * (131_072 + 128) == 3_224_371_200
    # our decoder keeps as many
    config, room = ModelConfig(d_model=32, n_layers=3, n_kv_heads=2, d_hidden=8, n_experts=2), 7
    _, decoder = decoding.start(model.init_params(config), config, np.array([1, 2]), room)
    kept = sum(layer.k_GMP.size + layer.v_GMP.size for layer in decoder.layers)
    assert kept == room * memory.kv_numbers(ours.architecture(config))


def test_cache_bytes_by_hand():
    # owned: the weight.  shared: 100 doubles seen three times.  own: 10 int64 and 7 bytes.  a view keeps its buffer
    weight, shared = np.zeros((3, 4)), np.zeros((10, 10))
    cache = (weight, weight.T[:2], [shared, shared.T, {"part": shared[2:5][:, 1:]}], (np.zeros(10, np.int64), None, 3),
             np.zeros(7, bool), np.zeros(1000)[:1])
    assert memory.cache_bytes(cache, {"w": weight}) == 800 + 80 + 7 + 8000
    config, rng = replace(CONFIG, capacity_factor=0.7, drop_order="random"), np.random.default_rng(0)
    params, (tokens_BS, targets_BS) = model.init_params(config), rng.integers(0, 13, (2, 4, 7))
    _, cache = model.objective_forward(params, tokens_BS, targets_BS, config, training=True, rng=rng)
    assert memory.step_memory(config, 4, 7).activations == memory.cache_bytes(cache, params)


def test_peak_is_the_most_at_once_each_time():
    def grow_and_shrink():
        first = np.ones(1_000_000)
        del first
        return len((np.ones(500_000), np.ones(750_000)))

    before = np.ones(2_000_000)
    assert memory.peak_bytes(grow_and_shrink) == pytest.approx(10_000_000, rel=0.01) and before.all()
    assert memory.peak_bytes(lambda: np.ones(10_000)) == pytest.approx(80_000, rel=0.05)
    with pytest.raises(ZeroDivisionError):
        memory.peak_bytes(lambda: 1 / 0)
    assert not memory.tracemalloc.is_tracing()


LARGER = dict(vocab_size=65, d_model=64, d_hidden=128, n_heads=4, max_sequence=64)
WALKED = COVERING | {
    "jitter": with_router(CONFIG, "switch", jitter=0.01),
    "jitter and shared experts": with_router(CONFIG, "switch", jitter=0.01, n_shared_experts=2),
    "losses of each token": replace(CONFIG, sequence_coef=0.1, entropy_coef=0.1)}
LEFT_OUT = {"base": 0.02, "gshard": 0.02}
"""What the formula leaves out: gshard's random numbers and the scores of its second choice; base, with one expert per
token, has so little else that the numbers of the tokens, their places and the rotations show."""


@pytest.mark.parametrize("case", WALKED)
def test_activations_by_formula_are_those_of_the_caches(case):
    config, batch, sequence = replace(WALKED[case], **LARGER), 4, 64
    rows = {i: r.run for i, r in counting.count(config, batch, sequence).rows.items()} if config.moe_layers else None
    walked = memory.step_memory(config, batch, sequence).activations
    found = 4 * memory.activation_numbers(config, batch, sequence, rows)
    assert found == pytest.approx(walked, rel=LEFT_OUT.get(case, 0.01))


def test_activations_by_hand():
    # T = 6, D = 4, 2 heads of 2 on one key head: norm 2*24 + 6 = 54; attention 6 * (6 + 2)*2 + 2*2*9 = 132
    # 12 rows of 4 + 3*3, 12 outputs of 4, logits and probabilities of 2, 17 each: 156 + 48 + 24 + 204;  head 54 + 6*5
    config = replace(TINY, top_k=2)
    assert memory.activation_numbers(config, 2, 3) == 54 + 54 + 132 + 432 + 84
    # shared: 6 * 3 * 3 more;  5 rows instead of 12: 5 * 13 + 5 * 4;  20 rows, 12 of them kept: 20 * 13 + 48
    assert memory.activation_numbers(replace(config, n_shared_experts=1), 2, 3) == 54 + 54 + 132 + 432 + 54 + 84
    assert memory.activation_numbers(config, 2, 3, rows={0: 5}) == 54 + 54 + 132 + 85 + 228 + 84
    assert memory.activation_numbers(config, 2, 3, rows={0: 20}) == 54 + 54 + 132 + 308 + 228 + 84
    # a loss of the entropy keeps log p, one number for each token and expert
    assert memory.activation_numbers(replace(config, entropy_coef=0.1), 2, 3) == 54 + 54 + 132 + 432 + 12 + 84
    # dense: 3 * 6 * 7.   noise: a second matrix 4 * 2, three numbers more for each token and expert, load four more
    assert memory.activation_numbers(replace(config, first_dense_layers=1, d_dense=7), 2, 3) == 54 + 54 + 132 + 126 + 84
    noisy = replace(config, router="noisy_topk", load_coef=0.0)
    assert memory.activation_numbers(noisy, 2, 3) == 54 + 54 + 132 + 432 + 3 * 12 + 2 * 4 * 2 + 84
    assert memory.activation_numbers(replace(noisy, load_coef=0.1), 2, 3) == 54 + 54 + 132 + 432 + 7 * 12 + 16 + 84
    # jitter: its factors, and with shared experts the input without them too
    jitter = replace(TINY, router="switch", jitter=0.1)
    for fields, kept in ((dict(), 24), (dict(n_shared_experts=1), 48)):
        without, with_jitter = (memory.activation_numbers(replace(jitter, jitter=j, **fields), 2, 3) for j in (0, 0.1))
        assert with_jitter - without == kept
    # soft: 2 slots each of C = 1 * 4 / 2 for 2 experts, Z = 4: input 24, three of 6 * 4, unit 16, 2 * 4 rows of 8 + 9
    soft = replace(TINY, router="soft", max_sequence=4)
    assert memory.activation_numbers(soft, 2, 3) == 54 + 54 + 132 + 24 + 72 + 16 + 2 * 4 * (8 + 9) + 84
