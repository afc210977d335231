"""FLOPs in closed form: by hand, and equal to the count of a run, for every router and option."""

import math
from dataclasses import replace

import numpy as np
import pytest

from minimoe import batches, cost, model
from minimoe.cost import deployment, formula, ours
from minimoe.cost.architecture import Architecture
from minimoe.cost.places import Place
from tests.unit.cost.covering import COVERING, TINY


def slots_by_hand(config, n_tokens):
    """C = factor * K * T / E, rounded up, from 1 to T."""
    exact = config.capacity_factor * config.top_k * n_tokens / config.n_experts
    return min(max(math.ceil(round(exact, 9)), 1), n_tokens)


@pytest.mark.parametrize("config", COVERING.values(), ids=COVERING)
def test_counted_flops_equal_the_formula(config):
    tokens_BS = np.random.default_rng(0).integers(0, config.vocab_size, (4, 7))  # what a count with seed 0 runs on
    result = batches.gradients(model.init_params(config, 0), batches.cut(tokens_BS, tokens_BS, 2), config,
                               np.random.default_rng(0))
    rows = dict.fromkeys(config.moe_layers, 0)  # that its experts should compute, after the routings of that run
    for of_group in result.routings:
        for layer, r in zip(config.moe_layers, of_group, strict=True):
            loads = [int(((r.expert_A == e) & r.kept_A).sum()) for e in range(config.n_experts)]
            slots = max(loads) if config.capacity_factor is None else slots_by_hand(config, len(r.mask_T))
            rows[layer] += config.n_experts * slots if config.pad_experts else sum(loads)
    counted = cost.count(config, 4, 7, groups=2)
    assert counted.work == formula.flops(ours.architecture(config), 4, 7, rows or None)
    assert {layer: of_layer.run for layer, of_layer in counted.rows.items()} == rows
    assert counted.flops("backward") == 2 * counted.flops("forward") > 0


def test_the_forward_flops_of_a_tiny_model_by_hand():
    # a token: q, k, v, o 2*4*4 + 2*4*2 + 2*4*2 + 2*4*4 = 96;  scores and mix with 3 keys, 2 heads of width 2: 2*24
    # router 2*4*2 = 16;  one expert 3 * 2*4*3 = 72;  head 2*4*5 = 40;  272 for each of 6 tokens
    a_token = {(0, "attention"): 96, (0, "attention scores"): 48, (0, "router"): 16, (0, "experts"): 72,
               (None, "head"): 40}
    assert formula.flops(ours.architecture(TINY), 2, 3) == {
        Place(*at, way): times * 6 * n for at, n in a_token.items() for way, times in (("forward", 1), ("backward", 2))}


def test_the_rows_of_each_layer_are_its_own():
    # two layers, 3 and 0 rows: of each the three products of 4 x 3
    found = formula.flops(ours.architecture(replace(TINY, n_layers=2)), 2, 3, {0: 3, 1: 0})
    assert found[0, "experts", "forward"] == 3 * 72 and found[0, "experts", "backward"] == 2 * 3 * 72
    assert (1, "experts", "forward") not in found and (1, "router", "forward") in found


@pytest.mark.parametrize("length, seen, pairs", [(3, 3, 6), (4, 4, 10), (5, 4, 14), (9, 4, 30)])
def test_a_token_attends_to_no_more_than_its_window_and_a_causal_kernel_skips_later_ones(length, seen, pairs):
    # 2 sequences; scores of 2 heads of width 2, the mix of width 1: 2 * 2 * 3 FLOPs per pair; linear: as for 2 tokens
    arch = Architecture(vocab=5, d_model=4, n_layers=3, n_heads=2, dense_ffn_hidden=7, v_head_dim=1, window=4,
                        attention=("window", "full", "linear"))
    found = formula.flops(arch, 2, length)
    assert [found[layer, "attention scores", "forward"] for layer in range(3)] == [
        2 * length * 12 * tokens for tokens in (seen, length, 2)]
    # without masked ones 1 + 2 + 3 pairs of 3 tokens; 1 + 2 + 3 + 4 + 4 of 5 with a window of 4, 1 + ... + 5 without
    found = formula.flops(arch, 2, length, causal=True)
    assert [found[layer, "attention scores", "forward"] for layer in range(3)] == [
        2 * 12 * n for n in (pairs, length * (length + 1) // 2, 2 * length)]
    attending = deployment.decode_flops(arch, length) - deployment.decode_flops(arch, 1)
    assert attending == 12 * (seen + length - 2)
    read, one = (deployment.bytes_read(arch, 3, n, rest="float32", cache="bf16") for n in (length, 1))
    assert read.pop("keys and values") == 3 * 2 * (6 * (seen + length) + 4)  # 2 * (2 + 1) a token; a state of 4
    assert one.pop("keys and values") == 3 * 2 * (6 + 6 + 4) and read == one


def test_of_two_stacks_the_decoder_attends_twice_by_hand():
    # 6 tokens in 2 sequences: scores and mix with 3 keys, 2 heads of width 2
    arch = Architecture(vocab=5, d_model=4, n_layers=2, n_heads=2, dense_ffn_hidden=7, encoder_decoder="1+1")
    # and 6 of 9 pairs where later tokens are masked, which is in the decoder's own stack alone
    for causal, pairs in ((False, (9, 18)), (True, (9, 6 + 9))):
        found = formula.flops(arch, 2, 3, causal=causal)
        assert [found[layer, "attention scores", "forward"] for layer in (0, 1)] == [2 * 16 * n for n in pairs]
