"""Decoding on a machine: bytes that a step reads, its FLOPs and its time; experts in use and experts to fetch."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import model
from minimoe.cost import architecture, counting, deployment, ours, published
from minimoe.cost.deployment import DecodeStep, Machine
from minimoe.generation import decoding, sampling
from tests.unit.cost.covering import BY_ROUTER, SHAPES, sent_to

TINY = architecture.Architecture(
    vocab=5, d_model=4, n_layers=2, n_heads=2, n_kv_heads=1, n_routed_experts=4, top_k=2, expert_hidden=3,
    n_shared_experts=1, dense_first_layers=1, dense_ffn_hidden=7, pos="learned", ctx=6)
"""Weights: norms 2*2*4 + 4 = 20, attention 2 * (16 + 8 + 8 + 16) = 96, dense 3*28 = 84, router 16, an expert 3*12 = 36,
the shared one as many, head 20; the embedding of 20 and the positions of 24 are looked up.  Cache 2 * 2 * 2 = 8."""
MACHINE = Machine("by hand", bandwidth=100.0, flops=1000.0, memory=1e3, link=7.0, host=5.0)
DENSE = architecture.Architecture(vocab=5, d_model=4, n_layers=2, n_heads=2, dense_ffn_hidden=7)


def test_bytes_that_a_step_reads_by_hand():
    # three sequences use 4 * (1 - 1/8) = 3.5 experts; their caches 3 * 5 * 8 numbers; two bytes each
    expected = {"norms": 40, "attention": 192, "dense": 168, "router": 32, "experts": 3.5 * 72, "shared experts": 72,
                "head": 40, "keys and values": 240}
    assert deployment.bytes_read(TINY, 3, 5) == expected
    assert deployment.bytes_read(replace(TINY, tied_embeddings=True), 3, 5) == expected  # the table is read as the head
    step = deployment.decode_step(TINY, 3, 5)
    assert (step.weights, step.cache, step.bytes) == (796, 240, 1036)
    # attention 96, dense 84, router 16, two experts 72, the shared one 36, head 20: 324 multiply-adds
    # two layers of two heads attend to 5 keys and 5 values of width 2
    assert deployment.decode_flops(TINY, 5) == 2 * 324 + 2 * 2 * 2 * (2 + 2) * 5
    assert (step.flops, step.intensity) == (3 * (648 + 160), 3 * 808 / 1036)
    # the slower of reading and computing counts: 300 bytes take 3 s, 1000 FLOPs one
    assert [DecodeStep(200.0, 100.0, flops).seconds(MACHINE) for flops in (0, 3001, 9000)] == [3, 3.001, 9]


def test_bytes_of_given_formats_and_experts():
    read = deployment.bytes_read(TINY, 3, 5, rest="float32", experts="mxfp4", cache="bf16", distinct=3)
    assert read["experts"] == 3 * 36 * 4.25 / 8
    assert (read["norms"], read["shared experts"], read["keys and values"]) == (80, 144, 240)
    step = deployment.decode_step(TINY, 3, 5, "float32", "mxfp4", "bf16", 3)
    assert (step.weights, step.cache) == (sum(read.values()) - 240, 240)
    # a dense model reads all its weights: norms 20, attention 2 * 4 * 16, two blocks of 3*28, head 20; cache 2 * 2 * 4
    step = deployment.decode_step(DENSE, 9, 6, "float32", cache="float32")
    assert (step.weights, step.cache) == (4 * (20 + 128 + 168 + 20), 9 * 6 * 4 * 16)
    assert deployment.expert_bytes(DENSE) == 0
    biased = replace(TINY, biases="experts")  # 3 + 3 + 4 more, which stay in the format of the rest
    assert deployment.expert_bytes(TINY) == 72
    assert deployment.expert_bytes(biased, "bf16", "mxfp4") == 36 * 4.25 / 8 + 20


def test_latent_attention_attends_to_latent_vectors_by_hand():
    # a query is a latent vector of 3 and a position of 2, the result a latent vector of 3: width 3 + 2 + 3
    latent = architecture.Latent(kv_lora_rank=3, qk_nope_head_dim=6, qk_rope_head_dim=2, v_head_dim=6)
    # queries 4 * 2*8, latent 4 * 5, made into keys and values 3 * 2*12, back 2*6 * 4
    weights = 2 * (64 + 20 + 72 + 48) + 2 * 3 * 28 + 20
    assert deployment.decode_flops(replace(DENSE, mla=latent), 7) == 2 * weights + 2 * 2 * 2 * 8 * 7
    # DeepSeek-V3: 61 layers of 128 heads, 512 + 64 + 512 wide
    v3 = published.find("deepseek-v3").arch
    assert deployment.decode_flops(v3, 101) - deployment.decode_flops(v3, 100) == 2 * 61 * 128 * 1088


def test_of_two_stacks_the_decoder_works_and_attends_twice():
    # 12 layers: 4 matrices of 768 x 768 for its own sequence, 2 for the other, whose keys and values are there; in
    # every second layer an expert of 2 matrices of 768 x 3072 and a router of 8, else a dense block like it; the head
    arch = published.find("switch-base-8").arch
    weights = 12 * 6 * 768**2 + 12 * 2 * 768 * 3072 + 6 * 8 * 768 + 32128 * 768
    assert deployment.decode_flops(arch, 0) == 2 * weights
    assert deployment.decode_flops(arch, 9) - deployment.decode_flops(arch, 8) == 2 * 24 * 12 * 128
    # read: the same and norms, 3 a layer and the 2 at the ends, and 2 * 32 * 12 numbers of relative positions
    read = deployment.decode_step(arch, 1, 5, "float32", distinct=1)
    assert read.weights == 4 * (weights + 38 * 768 + 2 * 32 * 12)
    assert read.cache == 2 * 5 * 2 * 768 * 24


DECODED = {name: config for name, config in (BY_ROUTER | SHAPES).items() if sampling.causal(config)}


@pytest.mark.parametrize("case", DECODED)
def test_a_step_of_our_decoder_takes_as_many_flops_as_by_formula(case):
    # x @ x.T of a norm is a product of vectors, which is not counted, in decoding as in training
    config, noted, context = DECODED[case], [], 8
    params = {name: counting.counted(array, noted.append) for name, array in model.init_params(config).items()}
    tokens_S = np.arange(context)
    _, decoder = decoding.start(params, config, tokens_S[:-1], context)
    noted.clear()
    decoding.step(decoder, int(tokens_S[-1]), context - 1)
    left_out = 0
    if case == "st_moe":  # whose second experts work only where their gates are large
        used = noted.count(counting.Product((1, 12), (12, 10))) // 2  # two products into the hidden layer
        assert 3 <= used <= 6
        left_out = (6 - used) * 3 * 2 * 12 * 10
    found = sum(product.flops for product in noted)
    assert found == deployment.decode_flops(ours.architecture(config), context) - left_out


def test_the_turning_batch_by_hand():
    # weights 2 * (20 + 128 + 168 + 20) = 672 bytes, 32 of cache per sequence; 2 * (128 + 168 + 20) + 32 = 664 FLOPs:
    # n * 664 / F >= (672 + 32 n) / 100, so n >= 6.72 / (664 / F - 0.32)
    for flops, turn in ((50.0, 1), (500.0, 7), (1000.0, 20), (2000.0, 560), (2100.0, None)):
        assert deployment.turning_batch(DENSE, MACHINE._replace(flops=flops), 1) == turn
    assert [deployment.turning_batch(DENSE, MACHINE, 1, limit=limit) for limit in (20, 19)] == [20, None]
    formats = dict(rest="float32", experts="int4", cache="bf16")
    turn = deployment.turning_batch(TINY, MACHINE, 1, **formats)
    for batch, computes in ((turn, True), (turn - 1, False)):
        step = deployment.decode_step(TINY, batch, 1, **formats)
        assert (step.flops / 1000 >= step.bytes / 100) == computes


def test_offloading_by_hand():
    # one layer with experts; three sequences use 3.5 of 4, of 72 bytes; the host sends 5 bytes/s
    for resident, seconds in ((0, 3.5 * 72 / 5), (1, 3.5 * 72 / 5 * 3 / 4), (4, 0)):
        assert deployment.offload_seconds(TINY, MACHINE, 3, resident) == pytest.approx(seconds)
    both, one = replace(TINY, dense_first_layers=0, dense_ffn_hidden=None), 36 * 4.25 / 8
    assert deployment.offload_seconds(both, MACHINE, 3, 2, "bf16", "mxfp4") == pytest.approx(2 * 3.5 / 2 * one / 5)
    assert deployment.offload_seconds(both, MACHINE, 3, 2, distinct=2) == pytest.approx(2 * 2 / 2 * 72 / 5)
    assert deployment.offload_seconds(DENSE, MACHINE, 3, 0) == 0
    for resident in (-1, 5):
        with pytest.raises(ValueError, match=f"resident = {resident}: must be from 0 to the 4 experts"):
            deployment.offload_seconds(TINY, MACHINE, 1, resident)


def test_data_sheets():
    # bandwidth, flops, memory, link, host.  H100 SXM: 3.35 TB/s, 989 TFLOPS dense BF16, NVLink 900 GB/s both ways.
    # A100: 2,039 GB/s, 312, 600 GB/s.  RTX 4090: 1,008 GB/s, 165.2.  DDR5: 8 cores of 64 FLOPs a cycle at 4 GHz
    assert {name: tuple(machine)[1:] for name, machine in deployment.MACHINES.items()} == {
        "h100": (3.35e12, 989.4e12, 80e9, 450e9, 64e9), "a100": (2.039e12, 312e12, 80e9, 300e9, 32e9),
        "rtx4090": (1.008e12, 165.2e12, 24e9, 32e9, 32e9),
        "ddr5": (2 * 8 * 5.6e9, 8 * 64 * 4e9, 64e9, 16e9, 7e9)}


def test_distinct_experts_as_published_and_as_drawn():
    for E, K, batch, expected in ((8, 2, 4, 5.469), (64, 8, 8, 42.01), (256, 8, 32, 163.3), (8, 2, 1, 2)):
        assert deployment.distinct_experts(E, K, batch) == pytest.approx(expected, rel=3e-4)  # as many digits as there
    drawn = deployment.drawn_experts(8, 2, 4, np.random.default_rng(1), draws=2000)
    assert drawn.shape == (2000,)
    assert abs(drawn.mean() - deployment.distinct_experts(8, 2, 4)) < 4 * drawn.std(ddof=1) / np.sqrt(2000)
    rng = np.random.default_rng(2)
    assert set(deployment.drawn_experts(6, 2, 1, rng)) == {2} and set(deployment.drawn_experts(3, 3, 4, rng)) == {3}
    drawn = deployment.drawn_experts(6, 2, 2, rng)
    assert drawn.min() == 2 and drawn.max() == 4 and len(drawn) == 1000


# Four sequences of two positions.  Of 0 and 1: {0, 1} and {0, 2, 3};  of 2 and 3: {0}+{0, 1} and {3, 2}
FOUR = [[[0, 1], [2, 0]], [[1, 0], [0, 3]], [[0, 1], [3, 2]], [[1, 0], [2, 3]]]


def test_touched_experts_by_hand():
    found = sent_to(FOUR, 4)
    # with three, the fourth is left out
    for batch, expected in ((1, [2] * 8), (2, [2, 3, 2, 2]), (3, [2, 3]), (4, [2, 3])):
        assert deployment.touched_experts(found, batch).tolist() == expected
    for wrong in (0, 5):
        with pytest.raises(ValueError, match=f"batch = {wrong}: must be from 1 to the 4 sequences"):
            deployment.touched_experts(found, wrong)


def test_misses_by_hand():
    # 0: 0 and 1 are new; then 2 is, and 0 is there, since a token's experts are not driven out by each other
    # 1: 1 and 0 are new; then 0 is there and 3 is new.  Six of eight
    assert deployment.misses(sent_to(FOUR[:2], 4), 2) == 6 / 8 and deployment.misses(sent_to([[[0]]], 4), 1) == 1
    # with one: the first choice of a token is what is left of it
    assert deployment.misses(sent_to([[[0, 1], [0, 2], [2, 0]]], 4), 1) == 4 / 6
    dropped = sent_to([[[0, 1]] * 4], 2, factor=0.5)  # room for two in each: what was dropped is not fetched
    assert deployment.misses(dropped, 2) == 2 / 4 and (deployment.touched_experts(dropped, 1) == [2, 2, 0, 0]).all()
    assert deployment.misses(replace(dropped, kept_A=np.zeros_like(dropped.kept_A)), 2) == 0
    # 0 1 | 0 2 | 1 2 with two: 2 drives out 1, and 1 then 0; the order of the assignments is no order of use
    found = sent_to([[[0, 1], [0, 2], [1, 2]], [[2, 1], [2, 1], [0, 2]]], 3)
    order = np.random.default_rng(0).permutation(len(found.token_A))
    shuffled = replace(found, **{name: getattr(found, name)[order] for name in (
        "token_A", "expert_A", "rank_A", "gate_A", "slot_A", "kept_A")})
    assert [deployment.misses(r, n) for r in (found, shuffled) for n in (0, 1, 2, 3)] == [
        1, 9 / 12, 7 / 12, 6 / 12] * 2
