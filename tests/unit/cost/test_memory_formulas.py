"""Bytes in closed form: formats and caches by hand, checkpoints as published, activations and peaks as measured."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import model
from minimoe.config import ModelConfig, TrainConfig
from minimoe.cost import architecture, counting, memory, ours, peak, published
from minimoe.generation import decoding
from minimoe.moe.routers import ROUTERS
from minimoe.training import data, loop

TINY = architecture.Architecture(vocab=5, d_model=4, n_layers=2, n_heads=2, n_kv_heads=1, n_routed_experts=4, top_k=2,
                                 expert_hidden=3, biases="experts", dense_first_layers=1, dense_ffn_hidden=7)
LATENT = architecture.Latent(q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
                             v_head_dim=128)
DEEPSEEK_V2 = architecture.Architecture(
    vocab=102400, d_model=5120, n_layers=60, n_heads=128, mla=LATENT, n_routed_experts=160, top_k=6, n_shared_experts=2,
    expert_hidden=1536, dense_first_layers=1, dense_ffn_hidden=12288)
"""As in DeepSeek-V2, arXiv:2405.04434, sec. 3.1.2."""


@pytest.mark.parametrize("name, bits", [
    ("float32", 32), ("bf16", 16), ("fp8", 8 + 32 / 16384), ("int8", 8 + 16 / 64), ("int4", 4 + 16 / 64),
    ("mxfp8", 8 + 8 / 32), ("mxfp4", 4.25)])
def test_bits_of_a_number_with_its_share_of_the_scale(name, bits):
    assert memory.FORMATS[name].bytes(8) == bits
    assert memory.FORMATS[name].bytes(0) == 0


def test_all_formats_are_checked_by_hand():
    assert list(memory.FORMATS) == ["float32", "bf16", "fp8", "int8", "mxfp8", "int4", "mxfp4"]


def test_bytes_of_the_weights_by_hand():
    # embedding and head 20 each; norms 2*8 + 4; attention 2 * (16 + 8 + 8 + 16); dense 3*28; router 16: rest 256
    # an expert has 3*12 in its matrices and biases of 2*3 + 4: 4 of them 144, and 40 that are of the rest
    assert memory.weight_bytes(TINY, "float32") == 4 * (256 + 144 + 40)
    assert memory.weight_bytes(TINY) == 2 * (256 + 144 + 40)
    assert memory.weight_bytes(TINY, "bf16", "mxfp4") == 2 * (256 + 40) + 144 * 4.25 / 8
    assert memory.weight_bytes(TINY, "float32", "float32") == memory.weight_bytes(TINY, "float32")


@pytest.mark.parametrize("fields, gib", [(dict(), 12.8), (dict(n_layers=36, n_routed_experts=128), 60.8)])
def test_checkpoints_of_gpt_oss_are_as_large_as_published(fields, gib):
    # gpt-oss model card, arXiv:2508.10925, table 1: experts in MXFP4, the rest in bf16
    arch = replace(published.find("gpt-oss-20b").arch, **fields)
    assert round(memory.weight_bytes(arch, "bf16", "mxfp4") / 2**30, 1) == gib


def test_training_takes_sixteen_bytes_a_parameter():
    # ZeRO, sec. 3.1: 2 + 2 + (4 + 4 + 4) in mixed precision; ours in float32 4 + 4 + 2 * 4
    assert memory.ADAM_BYTES == {"float32": 16, "mixed precision": 16}
    config = ModelConfig(d_model=32, n_layers=1, n_experts=2)
    held = memory.step_memory(config, 1, 2)
    total = sum(array.size for array in model.init_params(config).values())
    assert held.parameters + held.gradients + held.moments == 16 * total


@pytest.mark.parametrize("arch, numbers", [
    (TINY, 2 * 1 * (2 + 2)),  # two layers, one key head of width 2, key and value
    (replace(TINY, n_kv_heads=None), 2 * 2 * (2 + 2)),
    (replace(TINY, head_dim=5), 2 * 1 * (5 + 5)),
    (published.find("llama-2-7b").arch, 32 * 2 * 4096),
    (published.find("mixtral-8x7b").arch, 32 * 2 * 8 * 128),
    (published.find("deepseek-v2-lite").arch, 15_552),  # 27 * (512 + 64)
    (DEEPSEEK_V2, 34_560),  # 60 * (512 + 64)
    # 12 decoder layers, each with keys and values of its own text and of the encoder's, 12 heads of 64
    (published.find("switch-base-8").arch, 12 * 2 * 2 * 12 * 64),
])
def test_numbers_of_the_cache_by_hand(arch, numbers):
    assert memory.kv_numbers(arch) == numbers


def test_the_latent_cache_is_smaller_than_that_of_heads_as_published():
    # DeepSeek-V2, table 1: as a GQA cache with 2.25 groups, 2 * 2.25 * 128 * 60
    assert memory.kv_numbers(DEEPSEEK_V2) == 2 * 2.25 * 128 * 60


@pytest.mark.parametrize("fields", [dict(), dict(n_kv_heads=1), dict(n_kv_heads=2, n_layers=1)])
def test_our_decoder_keeps_as_many_numbers(fields):
    config, room = ModelConfig(**dict(d_model=32, n_layers=3, d_hidden=8, n_experts=2) | fields), 7
    _, decoder = decoding.start(model.init_params(config), config, np.array([1, 2]), room)
    kept = sum(layer.k_GMP.size + layer.v_GMP.size for layer in decoder.layers)
    assert kept == room * memory.kv_numbers(ours.architecture(config))


MIDDLE = ModelConfig(d_model=64, n_layers=2, n_heads=4, d_hidden=128, n_experts=8, top_k=2, max_sequence=64)
LARGE = replace(MIDDLE, d_model=128, d_hidden=256)

# What the formula leaves out: gshard's lots and the scores of its second choice; base, with one expert a token, has so
# little else that the numbers of the tokens, their places and the rotations show.
KEEPS_MORE = {"base": 0.02, "gshard": 0.02}


def ratio(config, batch=4, sequence=64):
    """Bytes of activations by formula, over those that a walk through the caches finds."""
    rows = {i: r.run for i, r in counting.count(config, batch, sequence).rows.items()} if config.moe_layers else None
    walked = memory.step_memory(config, batch, sequence).activations
    return 4 * memory.activation_numbers(config, batch, sequence, rows) / walked


def with_router(config, router, **fields):
    return replace(config, router=router, top_k=ROUTERS[router].FACTS.top_k or 2, **fields)


@pytest.mark.parametrize("config", [pytest.param(MIDDLE, id="64"), pytest.param(LARGE, id="128")])
@pytest.mark.parametrize("router", ROUTERS)
def test_activations_are_those_of_the_caches_with_every_router(router, config):
    assert ratio(with_router(config, router)) == pytest.approx(1, rel=KEEPS_MORE.get(router, 0.01))


@pytest.mark.parametrize("n_shared, kept", [(0, 1), (2, 2)])
def test_jitter_keeps_its_factors_and_with_shared_experts_the_tokens_too(n_shared, kept):
    # the router keeps a copy of the tokens in place of the tokens, and the factors: T * D in each of two layers.
    # shared experts keep the tokens beside the copy
    config = replace(with_router(MIDDLE, "switch"), n_shared_experts=n_shared)
    without, with_jitter = (memory.step_memory(replace(config, jitter=j), 4, 64).activations for j in (0.0, 0.01))
    assert with_jitter - without == 4 * 2 * kept * (4 * 64) * 64
    without, with_jitter = (memory.activation_numbers(replace(config, jitter=j), 4, 64) for j in (0.0, 0.01))
    assert with_jitter - without == 2 * kept * (4 * 64) * 64


SHAPES = {
    "dense": dict(first_dense_layers=2, d_dense=512),
    "one expert": dict(n_experts=1, top_k=1),
    "shared experts": dict(n_shared_experts=2),
    "first layer dense": dict(first_dense_layers=1, d_dense=512),
    "every second layer": dict(n_layers=4, moe_every=2),
    "soft after dense": dict(router="soft", first_dense_layers=1, d_dense=300),
    "grouped heads": dict(n_kv_heads=1),
    "tied": dict(tie_embeddings=True),
    "large vocabulary": dict(vocab_size=2000),
    "dropped": dict(capacity_factor=0.6),
    "padded": dict(capacity_factor=1.5, pad_experts=True),
    "padded, dropless": dict(pad_experts=True),
    "one layer": dict(n_layers=1, d_model=128),
}


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_activations_are_those_of_the_caches_in_every_shape(fields):
    assert ratio(replace(MIDDLE, **fields)) == pytest.approx(1, rel=0.01)


def test_activations_of_long_sequences_are_mostly_the_weights_of_pairs():
    config = replace(MIDDLE, max_sequence=512)
    assert ratio(config, 1, 512) == pytest.approx(1, rel=0.01)
    assert ratio(config, 2, 100) == pytest.approx(1, rel=0.01)


def test_activations_by_hand():
    # T = 6, D = 4, 2 heads of 2 on one key head: norm 2*24 + 6 = 54; attention 6 * (6 + 2)*2 + 2*2*9 = 132
    # 12 rows of 4 + 3*3, 12 outputs of 4, logits and probabilities of 2, 17 each: 156 + 48 + 24 + 204;  head 54 + 6*5
    config = ModelConfig(vocab_size=5, d_model=4, n_layers=1, n_heads=2, n_kv_heads=1, d_hidden=3, n_experts=2, top_k=2)
    assert memory.activation_numbers(config, 2, 3) == 54 + 54 + 132 + 432 + 84
    # shared: 6 * 3 * 3 more;  5 rows instead of 12: 5 * 13 + 5 * 4;  20 rows, 12 of them kept: 20 * 13 + 48
    shared = replace(config, n_shared_experts=1)
    assert memory.activation_numbers(shared, 2, 3) == 54 + 54 + 132 + 432 + 54 + 84
    assert memory.activation_numbers(config, 2, 3, rows={0: 5}) == 54 + 54 + 132 + 85 + 228 + 84
    assert memory.activation_numbers(config, 2, 3, rows={0: 20}) == 54 + 54 + 132 + 308 + 228 + 84


DEEP = replace(LARGE, n_layers=3)
STEPS = {
    "one group": (dict(), dict()),
    "two groups": (dict(), dict(groups=2)),
    "four groups": (dict(), dict(groups=4)),
    "dense": (dict(first_dense_layers=3), dict()),
    "dense, one layer": (dict(first_dense_layers=1, n_layers=1), dict()),
    "wide dense layer first": (dict(first_dense_layers=1, d_dense=4096), dict()),
    "many experts": (dict(n_experts=32, d_hidden=64), dict()),
    "shared experts": (dict(n_shared_experts=2), dict()),
    "large vocabulary": (dict(vocab_size=4000), dict()),
    "one layer": (dict(n_layers=1), dict()),
    "large vocabulary, one layer": (dict(vocab_size=4000, n_layers=1), dict()),
    "one layer, all experts": (dict(n_layers=1, top_k=8), dict()),
    "long sequence": (dict(max_sequence=512), dict(batch=2, sequence=512)),
    "padded": (dict(capacity_factor=2.0, pad_experts=True), dict()),
    "dropped": (dict(capacity_factor=0.5), dict()),
    "soft": (dict(router="soft"), dict()),
    "soft, one layer": (dict(router="soft", n_layers=1), dict()),
    "tied": (dict(tie_embeddings=True), dict()),
    "all groups held": (dict(global_balance=True), dict(groups=4)),
    "micro-batches": (dict(), dict(accumulate=3, batch=4)),
    "micro-batches in groups, held": (dict(global_balance=True), dict(accumulate=2, groups=2, batch=4)),
    "logits of all groups held": (dict(global_balance=True, vocab_size=4000, n_layers=1), dict(accumulate=4)),
    "routings wait": (dict(n_layers=1, n_experts=64, top_k=8, d_model=16, d_hidden=16, max_sequence=32),
                      dict(accumulate=8, batch=32, sequence=32)),
    "four shared experts": (dict(n_layers=1, n_shared_experts=4), dict(batch=32)),
    "sixteen shared experts": (dict(n_layers=1, n_shared_experts=16), dict()),
    "many thin experts": (dict(n_layers=2, n_experts=64, d_hidden=32), dict(batch=64)),
    "soft, many experts": (dict(n_layers=2, n_experts=64, d_hidden=32, router="soft"), dict(batch=32)),
    "soft, more slots than tokens": (dict(n_layers=1, n_experts=64, d_hidden=16, top_k=4, router="soft"), dict()),
    "soft, narrow": (dict(n_layers=1, d_model=16, d_hidden=16, top_k=1, router="soft"), dict(batch=64)),
    "narrow, many experts": (dict(d_model=16, n_experts=64, d_hidden=32), dict(batch=32)),
    "second layer wide": (dict(n_layers=2, first_dense_layers=1, d_dense=64, n_shared_experts=16), dict()),
    "second layer dense and wide": (dict(n_layers=2, moe_every=2, d_dense=4096, d_hidden=16, n_heads=2), dict()),
    "last layer dense and wide": (dict(n_layers=3, moe_every=2, d_dense=2048, d_hidden=16), dict()),
    "attention decides": (dict(n_layers=1, n_heads=16, first_dense_layers=1, d_dense=16, max_sequence=256),
                          dict(batch=4, sequence=256)),
    "attention of few keys decides": (dict(n_layers=1, n_heads=8, n_kv_heads=1, d_hidden=16, max_sequence=256),
                                      dict(batch=4, sequence=256)),
    "attention of short texts decides": (dict(n_layers=1, n_heads=1, d_hidden=16, top_k=1), dict(batch=32)),
    "choice decides": (dict(router="hash", n_layers=1, n_experts=512, top_k=1, d_model=16, d_hidden=2, vocab_size=5),
                       dict(batch=32)),
    "all losses": (dict(n_layers=1, n_experts=64, d_model=16, d_hidden=16, top_k=1, n_devices=2, sequence_coef=0.1,
                        entropy_coef=0.1, device_coef=0.1), dict(batch=32)),
    "no losses": (dict(n_layers=1, n_experts=64, d_model=16, d_hidden=16, top_k=1, balance_coef=0.0, z_coef=0.0),
                  dict(batch=32)),
}


@pytest.mark.parametrize("case", STEPS)
def test_the_peak_of_a_training_step_is_as_by_formula(case):
    fields, training = STEPS[case]
    check_peak(replace(DEEP, **fields), **training)


@pytest.mark.parametrize("router", ROUTERS)
def test_the_peak_with_every_router_and_many_thin_experts(router):
    check_peak(with_router(replace(DEEP, n_layers=1, d_model=16, d_hidden=16, n_experts=64), router), batch=32)


def check_peak(config, **training):
    training = TrainConfig(**dict(n_steps=10, batch=8, sequence=64) | training)
    text, in_group, rows = data.random_text(config, training), training.batch // training.groups, None
    if config.moe_layers:
        rows = {i: r.run for i, r in counting.count(config, in_group, training.sequence).rows.items()}
    traced = memory.peak_bytes(lambda: loop.step_once(loop.new_state(config, training, text), text))
    said = peak.peak_formula(config, training.batch, training.sequence, training.groups, 1,
                             training.accumulate, rows)
    assert said == pytest.approx(traced, rel=0.05)  # 0.1 is what is promised


@pytest.mark.parametrize("groups, threads, copies, held", [
    # weights and two moments, a gradient for each group that runs, and one sum that waits
    (1, 1, 4, 1), (2, 1, 5, 1), (4, 1, 5, 1), (2, 2, 5, 2), (4, 2, 6, 2), (2, 8, 5, 2)])
def test_the_peak_of_groups_that_run_at_the_same_time(groups, threads, copies, held):
    size = 4 * sum(array.size for array in model.init_params(MIDDLE).values())
    of_group = peak.peak_formula(MIDDLE, 8 // groups, 64) - 4 * size
    # of each group that is done, the Routings of two layers: two scores of 8 experts and 13 of each of 2 assignments
    done = 4 * (groups - held) * 2 * (8 // groups * 64) * (2 * 8 + 13 * 2)
    assert peak.peak_formula(MIDDLE, 8, 64, groups, threads) == copies * size + held * of_group + done


@pytest.mark.parametrize("tied, kept", [(False, 4 + 3), (True, 3 + 1)])
def test_a_larger_vocabulary_costs_the_peak_its_weights_and_three_numbers_a_token(tied, kept):
    # the peak is in the first layer, before the gradient of the embedding: weights, moments, gradient of the head are
    # 4 * 64, weights and moments of the embedding 3 * 64; tied, the head's gradient is beside its own 3 * 64.
    # of 128 tokens probabilities, logits, gradient
    config = replace(MIDDLE, tie_embeddings=tied)
    one, two = (peak.peak_formula(replace(config, vocab_size=V), 2, 64) for V in (65, 66))
    assert two - one == 4 * (kept * 64 + 3 * 128)


def test_the_moments_of_a_step_by_hand():
    # T = 6, D = 4, 12 rows, 6 an expert.  to the end: logits 2*30, two of 24, of the routing 3*12 + 12: 156
    # head 4*5 + 4 = 24 of weights.  experts: 72 of weights, rows 2*48, working 6 * (3*3 + 2*4) + 6*4 = 126
    # attention: 84 of weights made meanwhile; block 72, mix and queries 48, keys and values 24, weights 16;
    # joining 72 + 16 is more than pairs 2*2*9 and mix once more, 24.  embedding: 52 more weights; 24 + 2*20
    # choice: one of 12 and one of 24 are there, but not yet norms 48, probabilities 30, rows 12 * (8 + 9)
    config = ModelConfig(vocab_size=5, d_model=4, n_layers=1, n_heads=2, n_kv_heads=1, d_hidden=3, n_experts=2, top_k=2)
    assert peak.moments(config, 2, 3) == {
        "head": 156 + 24 + 24, "moe of layer 0": 156 + 24 + 72 + 96 + 126,
        "attention of layer 0": 156 + 24 + 84 + 72 + 48 + 24 + 16 + 72 + 16,
        "embedding": 156 + 24 + 84 + 52 + 24 + 40, "choice": 12 + 24 - 48 - 30 - 204}


HAND = ModelConfig(vocab_size=5, d_model=4, n_layers=1, n_heads=2, n_kv_heads=1, d_hidden=3, n_experts=4, top_k=1,
                   router="base")


def test_the_choice_of_a_router_can_be_the_fullest_part_of_its_layer():
    # T = 6.  to the end 60 + 48 + 24 + 6, head 24; experts 3*48 of weights, rows 2*24; four of 24, input twice 24
    assert peak.moments(HAND, 2, 3)["moe of layer 0"] == 138 + 24 + 144 + 48 + 4 * 24 + 2 * 24


def test_dropped_rows_are_copied_once_more_to_be_added_up():
    # hash has no gradient: of the 9 rows 2*36; to be added: 36, the sum and a choice of each token 24 each
    config = replace(HAND, router="hash", top_k=2)
    assert peak.moments(config, 2, 3, {0: 9})["moe of layer 0"] == 60 + 48 + 24 + 12 + 24 + 144 + 72 + 36 + 48


def test_the_moments_of_a_wide_dense_layer_and_a_long_sequence_by_hand():
    # T = 30.  to the end 2*150 + 2*120, head 24; four of 30*20 and the weights of one matrix, 80
    # attention: 4 + 240 of weights meanwhile; block 360, mix and queries 240, keys and values 120, weights 16;
    # pairs 2*30*30, and as two heads share their keys mix once more, 120
    found = peak.moments(replace(HAND, first_dense_layers=1, d_dense=20, max_sequence=30), 1, 30)
    assert found["dense of layer 0"] == 540 + 24 + 4 * 600 + 80
    assert found["attention of layer 0"] == 540 + 24 + 244 + 360 + 240 + 120 + 16 + 1800 + 120
