"""Decoding on a machine: bytes that a step reads, its FLOPs and its time, experts that have to be fetched."""

import inspect
from dataclasses import replace

import numpy as np
import pytest

from minimoe import model
from minimoe.config import ModelConfig
from minimoe.cost import architecture, counting, deployment, ours, published
from minimoe.cost.deployment import Machine, Step
from minimoe.generation import decoding, sampling
from minimoe.moe.routers import ROUTERS

TINY = architecture.Architecture(
    vocab=5, d_model=4, n_layers=2, n_heads=2, n_kv_heads=1, n_routed_experts=4, top_k=2, expert_hidden=3,
    n_shared_experts=1, dense_first_layers=1, dense_ffn_hidden=7, pos="learned", ctx=6)
"""Weights: norms 2*2*4 + 4 = 20, attention 2 * (16 + 8 + 8 + 16) = 96, dense 3*28 = 84, router 16, an expert 3*12 = 36,
the shared one as many, head 20; the embedding of 20 and the positions of 24 are looked up.  Cache 2 * 2 * 2 = 8."""
DENSE = architecture.Architecture(vocab=5, d_model=4, n_layers=2, n_heads=2, dense_ffn_hidden=7)


def test_bytes_that_a_step_reads_by_hand():
    # three texts use 4 * (1 - 1/8) = 3.5 experts; their caches 3 * 5 * 8 numbers; two bytes each
    expected = {"norms": 40, "attention": 192, "dense": 168, "router": 32, "experts": 3.5 * 72, "shared experts": 72,
                "head": 40, "keys and values": 240}
    assert deployment.bytes_read(TINY, 3, 5) == expected
    assert deployment.bytes_read(replace(TINY, tied_embeddings=True), 3, 5) == expected  # the table is read as the head
    step = deployment.decode_step(TINY, 3, 5)
    assert (step.weights, step.cache, step.bytes) == (796, 240, 1036)


def test_bytes_of_formats_and_of_experts_that_are_told():
    read = deployment.bytes_read(TINY, 3, 5, rest="float32", experts="mxfp4", cache="bf16", distinct=3)
    assert read["experts"] == 3 * 36 * 4.25 / 8
    assert (read["norms"], read["shared experts"], read["keys and values"]) == (80, 144, 240)
    step = deployment.decode_step(TINY, 3, 5, "float32", "mxfp4", "bf16", 3)
    assert (step.weights, step.cache) == (sum(read.values()) - 240, 240)


def test_a_dense_model_reads_all_its_weights_however_many_texts():
    # norms 20, attention 2 * 4 * 16, two blocks of 3*28, head 20; cache 2 layers of 2 * 4
    for batch in (1, 9):
        step = deployment.decode_step(DENSE, batch, 6, "float32", cache="float32")
        assert step.weights == 4 * (20 + 128 + 168 + 20)
        assert step.cache == batch * 6 * 4 * 16
    assert deployment.expert_bytes(DENSE) == 0


def test_bytes_of_an_expert_by_hand():
    assert deployment.expert_bytes(TINY) == 72
    assert deployment.expert_bytes(TINY, "bf16", "mxfp4") == 36 * 4.25 / 8
    biased = replace(TINY, biases="experts")  # 3 + 3 + 4 more, which stay in the format of the rest
    assert deployment.expert_bytes(biased, "bf16", "mxfp4") == 36 * 4.25 / 8 + 20


@pytest.mark.parametrize("key", published.models())
def test_the_parts_are_all_that_a_step_reads(key):
    arch = published.find(key).arch
    read, step = deployment.bytes_read(arch, 4, 16), deployment.decode_step(arch, 4, 16)
    assert step.bytes == pytest.approx(sum(read.values()), rel=1e-12)
    assert step.cache == read[deployment.CACHE]
    assert "embedding" not in read and "positions" not in read
    if arch.n_routed_experts:
        every = deployment.bytes_read(arch, 4, 16, distinct=arch.n_routed_experts)
        layers = arch.kinds[-arch.stacks[-1]:].count("moe")  # of two stacks the decoder's
        one = layers * deployment.expert_bytes(arch)
        assert every["experts"] == pytest.approx(arch.n_routed_experts * one)


def test_flops_of_a_token_by_hand():
    # attention 96, dense 84, router 16, two experts 72, the shared one 36, head 20: 324 multiply-adds
    # two layers of two heads look at 5 keys and 5 values of width 2
    assert deployment.decode_flops(TINY, 5) == 2 * 324 + 2 * 2 * 2 * (2 + 2) * 5
    assert deployment.decode_step(TINY, 3, 5).flops == 3 * (648 + 160)
    assert deployment.decode_step(TINY, 3, 5).intensity == 3 * 808 / 1036


def test_latent_attention_looks_at_latent_vectors_by_hand():
    # a query is a latent vector of 3 and a position of 2, the result a latent vector of 3: width 3 + 2 + 3
    latent = architecture.Latent(q_lora_rank=None, kv_lora_rank=3, qk_nope_head_dim=6, qk_rope_head_dim=2, v_head_dim=6)
    arch = replace(DENSE, mla=latent)
    # queries 4 * 2*8, latent 4 * 5, made into keys and values 3 * 2*12, back 2*6 * 4
    weights = 2 * (64 + 20 + 72 + 48) + 2 * 3 * 28 + 20
    assert deployment.decode_flops(arch, 7) == 2 * weights + 2 * 2 * 2 * 8 * 7
    # DeepSeek-V3: 61 layers of 128 heads, 512 + 64 + 512 wide
    v3 = published.find("deepseek-v3").arch
    assert deployment.decode_flops(v3, 101) - deployment.decode_flops(v3, 100) == 2 * 61 * 128 * 1088


def test_of_two_stacks_the_decoder_works_and_looks_twice():
    # 12 layers: 4 matrices of 768 x 768 for its own text, 2 for the other, whose keys and values are there; in every
    # second layer an expert of 2 matrices of 768 x 3072 and a router of 8, else a dense block of the same; the head
    arch = published.find("switch-base-8").arch
    weights = 12 * 6 * 768**2 + 12 * 2 * 768 * 3072 + 6 * 8 * 768 + 32128 * 768
    assert deployment.decode_flops(arch, 0) == 2 * weights
    assert deployment.decode_flops(arch, 9) - deployment.decode_flops(arch, 8) == 2 * 24 * 12 * 128
    # read: the same and norms, 3 a layer and the 2 at the ends, and 2 * 32 * 12 numbers of relative positions
    read = deployment.decode_step(arch, 1, 5, "float32", distinct=1)
    assert read.weights == 4 * (weights + 38 * 768 + 2 * 32 * 12)
    assert read.cache == 2 * 5 * 2 * 768 * 24


CONFIG = ModelConfig(vocab_size=13, d_model=12, n_layers=3, n_heads=2, d_hidden=10, n_experts=6, top_k=2,
                     max_sequence=9)
CASES = {name: dict(router=name, top_k=router.FACTS.top_k or 2) for name, router in ROUTERS.items()
         if sampling.causal(replace(CONFIG, router=name, top_k=router.FACTS.top_k or 2))}
CASES |= {
    "grouped heads": dict(n_kv_heads=1), "tied": dict(tie_embeddings=True), "shared experts": dict(n_shared_experts=2),
    "first layer dense": dict(first_dense_layers=1, d_dense=7), "dense": dict(first_dense_layers=3),
    "every second layer": dict(moe_every=2), "one expert": dict(n_experts=1, top_k=1), "all experts": dict(top_k=6),
    "groups": dict(router="sigmoid_bias", n_groups=3, top_groups=2)}


@pytest.mark.parametrize("context", [2, 8])
@pytest.mark.parametrize("case", CASES)
def test_a_step_of_our_decoder_takes_as_many_flops_as_by_formula(case, context):
    # x @ x.T of a norm is a product of vectors, which is not counted, in decoding as in training
    config, noted = replace(CONFIG, **CASES[case]), []
    params = {name: counting.counted(array, noted.append) for name, array in model.init_params(config).items()}
    text_S = np.arange(context)
    _, decoder = decoding.start(params, config, text_S[:-1], context)
    noted.clear()
    decoding.step(decoder, int(text_S[-1]), context - 1)
    left_out = 0
    if case == "st_moe":  # whose second experts work only where their gates are large
        used = noted.count(counting.Product((1, 12), (12, 10))) // 2  # two products into the hidden layer
        assert 3 <= used <= 6
        left_out = (6 - used) * 3 * 2 * 12 * 10
    found = sum(product.flops for product in noted)
    assert found == deployment.decode_flops(ours.architecture(config), context) - left_out


def test_all_routers_that_can_write_are_counted():
    assert len(CASES.keys() & ROUTERS.keys()) >= 9


MACHINE = Machine("by hand", bandwidth=100.0, flops=1000.0, memory=1e3, link=7.0, host=5.0)


@pytest.mark.parametrize("flops, seconds", [
    (0, 3), (2999, 3), (3000, 3), (3001, 3.001), (9000, 9)])  # 300 bytes take 3 s, 1000 FLOPs one
def test_the_slower_of_reading_and_computing_is_the_time(flops, seconds):
    assert Step(weights=200.0, cache=100.0, flops=flops).seconds(MACHINE) == pytest.approx(seconds)


def by_trial(arch, machine, context, limit, **formats):
    """The first batch of all whose step takes as long to compute as to read."""
    for batch in range(1, limit + 1):
        step = deployment.decode_step(arch, batch, context, **formats)
        if step.flops / machine.flops >= step.bytes / machine.bandwidth:
            return batch
    return None


@pytest.mark.parametrize("arch", [TINY, DENSE], ids=["MoE", "dense"])
@pytest.mark.parametrize("flops", [100.0, 150.0, 500.0, 1500.0, 4000.0])
@pytest.mark.parametrize("context", [1, 6])
def test_the_turning_batch_by_trial(arch, flops, context):
    machine = MACHINE._replace(flops=flops)
    found = deployment.turning_batch(arch, machine, context, limit=300)
    assert found == by_trial(arch, machine, context, 300)


def test_the_turning_batch_is_found_on_both_sides():
    found = {flops: deployment.turning_batch(TINY, MACHINE._replace(flops=flops), 1, limit=300)
             for flops in (50.0, 1500.0, 1e9)}
    assert found[50.0] == 1 and 1 < found[1500.0] < 300 and found[1e9] is None


def test_formats_move_the_turning_batch():
    wide, narrow = (deployment.turning_batch(TINY, MACHINE, 1, rest=form, cache=form) for form in ("float32", "int8"))
    assert narrow < wide
    assert wide == by_trial(TINY, MACHINE, 1, 2000, rest="float32", cache="float32")


def test_the_cache_can_hold_it_back_for_ever():
    # Mixtral reads 131,072 bytes of cache a token and 25.8 G FLOPs a text: at 2,048 tokens 96 FLOPs a byte, the H100
    # has 295; without much cache, at 64 tokens, it turns
    mixtral, h100 = published.find("mixtral-8x7b").arch, deployment.MACHINES["h100"]
    assert deployment.turning_batch(mixtral, h100, 2048) is None
    assert deployment.turning_batch(mixtral, h100, 64) > 256
    assert deployment.turning_batch(mixtral, h100, 64, limit=256) is None


@pytest.mark.parametrize("resident, seconds", [
    (0, 3.5 * 72 / 5), (1, 3.5 * 72 / 5 * 3 / 4), (4, 0)])
def test_offloading_by_hand(resident, seconds):
    # one layer with experts; three texts use 3.5 of 4, of 72 bytes; the host sends 5 bytes/s
    assert deployment.offload_seconds(TINY, MACHINE, 3, resident) == pytest.approx(seconds)


def test_offloading_of_formats_layers_and_experts_that_are_told():
    both = replace(TINY, dense_first_layers=0, dense_ffn_hidden=None)
    one = 36 * 4.25 / 8
    assert deployment.offload_seconds(both, MACHINE, 3, 2, "bf16", "mxfp4") == pytest.approx(2 * 3.5 / 2 * one / 5)
    assert deployment.offload_seconds(both, MACHINE, 3, 2, distinct=2) == pytest.approx(2 * 2 / 2 * 72 / 5)
    assert deployment.offload_seconds(DENSE, MACHINE, 3, 0) == 0


@pytest.mark.parametrize("resident", [-1, 5])
def test_more_resident_experts_than_there_are_are_refused(resident):
    with pytest.raises(ValueError, match=f"resident = {resident}: must be from 0 to the 4 experts"):
        deployment.offload_seconds(TINY, MACHINE, 1, resident)


@pytest.mark.parametrize("name", deployment.MACHINES)
def test_machines_are_in_the_units_that_they_say(name):
    # bytes/s of memory in GB to TB, FLOP/s in T to P, tens of GB; nothing outside is as fast as the own memory
    machine = deployment.MACHINES[name]
    assert 5e10 < machine.bandwidth < 1e13 and 1e12 < machine.flops < 3e15 and 1e10 < machine.memory < 3e11
    assert machine.host <= machine.link < machine.bandwidth
    assert 10 < machine.flops / machine.bandwidth < 500
    assert machine.words and machine.words.isprintable()


def test_data_sheets():
    # H100 SXM: 3.35 TB/s, 989 TFLOPS dense BF16, 80 GB, NVLink 900 GB/s both ways.  A100: 2,039 GB/s, 312, 600 GB/s
    h100, a100, ddr5 = (deployment.MACHINES[name] for name in ("h100", "a100", "ddr5"))
    assert (h100.bandwidth, round(h100.flops / 1e12), h100.memory, h100.link) == (3.35e12, 989, 80e9, 450e9)
    assert (a100.bandwidth, a100.flops, a100.memory, a100.link) == (2.039e12, 312e12, 80e9, 300e9)
    assert (ddr5.bandwidth, ddr5.flops) == (2 * 8 * 5.6e9, 8 * 64 * 4e9)
    assert list(inspect.signature(Machine).parameters) == ["words", "bandwidth", "flops", "memory", "link", "host"]
