"""FLOPs in closed form: by hand, and equal to what a run is counted with, of every router in every setting."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimoe import batches, cost, model
from minimoe.config import ModelConfig
from minimoe.cost import formula, ours
from minimoe.cost.places import Place
from minimoe.moe.capacity import ORDERS
from minimoe.moe.routers import ROUTERS

CONFIG = ModelConfig(vocab_size=13, d_model=12, n_layers=3, n_heads=2, d_hidden=10, n_experts=5, top_k=2,
                     max_sequence=9)
TINY = ModelConfig(vocab_size=5, d_model=4, n_layers=1, n_heads=2, n_kv_heads=1, d_hidden=3, n_experts=2, top_k=1)
LIMITS = {"capacity": dict(capacity_factor=1.25), "exact capacity": dict(capacity_factor=1.0),
          "dropless, padded": dict(pad_experts=True)} | {
    f"drop by {order}{', padded' * pad}": dict(capacity_factor=0.3, drop_order=order, pad_experts=pad)
    for order in ORDERS for pad in (False, True)}
"""Name -> fields of every way to limit or to fill the experts."""
SHAPES = {
    "as it is": dict(),
    "grouped heads": dict(n_kv_heads=1),
    "tied": dict(tie_embeddings=True),
    "three layers": dict(n_layers=3),
    "one expert": dict(n_experts=1, top_k=1),
    "one expert a token": dict(top_k=1),
    "all experts": dict(top_k=5),
    "shared experts": dict(n_shared_experts=3),
    "first layer dense": dict(n_layers=2, first_dense_layers=1, d_dense=7),
    "dense like the experts of a token": dict(n_layers=3, first_dense_layers=2, n_shared_experts=1),
    "every second layer": dict(n_layers=3, moe_every=2, n_shared_experts=1),
    "no layer so late": dict(moe_every=2),
    "all layers dense": dict(n_layers=2, first_dense_layers=2),
    "all layers dense, as wide as shared experts": dict(n_layers=2, first_dense_layers=2, n_shared_experts=1),
    "short texts": dict(max_sequence=7),
    "one slot for all": dict(n_experts=20),  # of Soft MoE: 2 * 9 / 20 is below 1
    "balance over groups": dict(global_balance=True, balance_coef=0.1),
}
"""Name -> fields of every other shape of a model."""


NOT_SOFT = {"capacity_factor", "drop_order", "pad_experts", "n_shared_experts"}
CASES = [pytest.param(replace(CONFIG, **dict(n_layers=1, router=name, top_k=router.FACTS.top_k or 2) | fields),
                      id=f"{name}, {case}")
         for name, router in ROUTERS.items() for case, fields in (SHAPES | LIMITS).items()
         if not (router.FACTS.soft and fields.keys() & NOT_SOFT) and (not router.FACTS.top_k or "top_k" not in fields)]
OPTIONS = [
    dict(router="softmax_topk", renormalize=False), dict(router="noisy_topk", load_coef=0.0),
    dict(router="sigmoid_bias", n_experts=6, n_groups=3, top_groups=2, gate_scale=2.0),
    dict(router="switch", top_k=1, jitter=0.0), dict(router="softmax_topk", n_experts=6, n_devices=3, device_coef=0.1)]


def rows_that_run(config, tokens_BS, n_groups, seed):
    """Layer -> rows that its experts should compute, after the routings of a run: the oracle of the counted rows."""
    result = batches.gradients(model.init_params(config, seed), batches.cut(tokens_BS, tokens_BS, n_groups), config,
                              np.random.default_rng(seed))
    rows = dict.fromkeys(config.moe_layers, 0)
    for of_group in result.routings:
        for layer, r in zip(config.moe_layers, of_group, strict=True):
            loads = [int(((r.expert_A == e) & r.kept_A).sum()) for e in range(config.n_experts)]
            slots = max(loads) if config.capacity_factor is None else slots_by_hand(config, len(r.mask_T))
            rows[layer] += config.n_experts * slots if config.pad_experts else sum(loads)
    return rows


def slots_by_hand(config, n_tokens):
    """C = factor * K * T / E, rounded up, at least 1 and at most T."""
    exact = config.capacity_factor * config.top_k * n_tokens / config.n_experts
    return min(max(math.ceil(round(exact, 9)), 1), n_tokens)


def assert_counted_equals_formula(config, batch, sequence, n_groups=1, seed=0):
    counted = cost.count(config, batch, sequence, n_groups, seed)
    tokens_BS = np.random.default_rng(seed).integers(0, config.vocab_size, (batch, sequence))
    rows = rows_that_run(config, tokens_BS, n_groups, seed)
    expected = formula.flops(ours.architecture(config), batch, sequence, rows or None)
    assert counted.work == expected
    assert {layer: of_layer.run for layer, of_layer in counted.rows.items()} == rows
    assert counted.flops("backward") == 2 * counted.flops("forward") > 0
    assert all(expected[place._replace(way="backward")] == 2 * n for place, n in expected.items()
               if place.way == "forward")


@pytest.mark.parametrize("config", CASES)
def test_counted_flops_equal_the_formula_of_every_router_in_every_setting(config):
    assert_counted_equals_formula(config, 2, 7, n_groups=2)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("batch, sequence, n_groups", [(1, 1, 1), (4, 7, 1), (4, 7, 4), (3, 2, 3)])
def test_counted_flops_equal_the_formula_of_every_batch(router, batch, sequence, n_groups):
    fields = {} if ROUTERS[router].FACTS.soft else dict(capacity_factor=0.8, pad_experts=True)
    config = replace(CONFIG, n_layers=1, router=router, top_k=ROUTERS[router].FACTS.top_k or 2, **fields)
    assert_counted_equals_formula(config, batch, sequence, n_groups)


@pytest.mark.parametrize("fields", OPTIONS)
def test_counted_flops_equal_the_formula_with_the_options_of_routers(fields):
    assert_counted_equals_formula(replace(CONFIG, **fields), 4, 7, n_groups=2)


@pytest.mark.parametrize("router", [name for name, router in ROUTERS.items() if router.FACTS.top_k is None])
@pytest.mark.parametrize("finer", [2, 5])
def test_finer_experts_do_the_work_of_the_coarse_and_their_router_more(router, finer):
    config = replace(CONFIG, router=router, n_layers=2)
    coarse, fine = (formula.flops(ours.architecture(c), 4, 9) for c in (config, config.finer(finer)))
    assert_counted_equals_formula(config.finer(finer), 4, 9)
    changed = {place.part for place in coarse.keys() | fine.keys() if coarse.get(place) != fine.get(place)}
    assert changed <= {"router"}
    assert changed or ROUTERS[router].FACTS.summary.startswith(("a fixed", "control")) or ROUTERS[router].FACTS.soft
    routed = [place for place in coarse if place.part == "router"]
    if not ROUTERS[router].FACTS.soft:
        assert all(fine[place] == finer * coarse[place] for place in routed)


@st.composite
def configurations(draw):
    """Any small model of any router, and a batch for it: (config, batch, sequence, groups, seed)."""
    router = draw(st.sampled_from(list(ROUTERS)))
    line, E = ROUTERS[router].FACTS, draw(st.integers(1, 6))
    n_groups, per_group, sequence = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 6))
    H = draw(st.sampled_from([1, 2, 4]))
    fields = dict(n_kv_heads=draw(st.sampled_from([None] + [G for G in (1, 2, 4) if H % G == 0])))
    if not line.soft:
        fields |= dict(n_shared_experts=draw(st.integers(0, 2)), pad_experts=draw(st.booleans()),
                       capacity_factor=draw(st.sampled_from([None, 0.1, 0.3, 1.0, 1.25, 3.0])),
                       drop_order=draw(st.sampled_from(list(ORDERS))))
    n_layers = draw(st.integers(1, 3))
    config = ModelConfig(
        vocab_size=draw(st.integers(1, 9)), d_model=8, n_layers=n_layers, n_heads=H, d_hidden=draw(st.integers(1, 5)),
        n_experts=E, top_k=min(line.top_k, E) if line.top_k else draw(st.integers(1, E)), router=router,
        first_dense_layers=draw(st.integers(0, n_layers)), moe_every=draw(st.integers(1, 2)),
        d_dense=draw(st.none() | st.integers(1, 7)), tie_embeddings=draw(st.booleans()),
        global_balance=draw(st.booleans()), max_sequence=sequence + draw(st.integers(0, 3)), **fields)
    return config, n_groups * per_group, sequence, n_groups, draw(st.integers(0, 99))


@settings(derandomize=True, deadline=None, max_examples=100)
@given(configurations())
def test_counted_flops_equal_the_formula_of_any_model_at_all(drawn):
    assert_counted_equals_formula(*drawn)


def test_the_forward_flops_of_a_tiny_model_by_hand():
    # a token: q, k, v, o 2*4*4 + 2*4*2 + 2*4*2 + 2*4*4 = 96;  scores and mix with 3 keys, 2 heads of width 2: 2*24
    # router 2*4*2 = 16;  one expert 3 * 2*4*3 = 72;  head 2*4*5 = 40;  272 for each of 6 tokens
    a_token = {(0, "attention"): 96, (0, "attention scores"): 48, (0, "router"): 16, (0, "experts"): 72,
               (None, "head"): 40}
    assert formula.flops(ours.architecture(TINY), 2, 3) == {
        Place(*at, way): times * 6 * n for at, n in a_token.items() for way, times in (("forward", 1), ("backward", 2))}
    assert cost.count(TINY, 2, 3).forward_flops == 6 * 272


def test_the_flops_of_a_tiny_soft_model_by_hand():
    # texts up to 4 tokens, 2 experts: C = 1 * 4 / 2 = 2 slots each, Z = 4.  3 sequences of 2 tokens, T = 6
    # logits 2*4*4 a token, and as much for the mean to slots, 2*4*2 each of 4 slots, and back;  12 slots in the experts
    config = replace(TINY, router="soft", max_sequence=4)
    found = formula.flops(ours.architecture(config), 3, 2)
    assert found[0, "router", "forward"] == 6 * 3 * 2 * 4 * 4
    assert found[0, "experts", "forward"] == 12 * 3 * 2 * 4 * 3
    assert found == cost.count(config, 3, 2).work


@pytest.mark.parametrize("fields, flops", [
    (dict(router="noisy_topk"), 6 * 2 * 4 * 2 * 2),  # a score and a spread for each expert
    (dict(router="sigmoid_bias"), 6 * 2 * 4 * 2),  # to add a bias is no product
    (dict(router="hash"), None), (dict(router="random"), None), (dict(router="uniform"), None)])
def test_the_flops_of_routers_by_hand(fields, flops):
    config = replace(TINY, **fields)
    for found in (formula.flops(ours.architecture(config), 2, 3), cost.count(config, 2, 3).work):
        assert found.get(Place(0, "router", "forward")) == flops


def test_the_rows_of_each_layer_are_its_own():
    # two layers, 3 and 5 rows: of each the three products of 4 x 3
    found = formula.flops(ours.architecture(replace(TINY, n_layers=2)), 2, 3, {0: 3, 1: 5})
    assert [found[layer, "experts", "forward"] for layer in (0, 1)] == [3 * 72, 5 * 72]
    assert found[1, "experts", "backward"] == 2 * 5 * 72


def test_experts_without_rows_have_no_place():
    found = formula.flops(ours.architecture(TINY), 2, 3, {0: 0})
    assert Place(0, "experts", "forward") not in found and Place(0, "router", "forward") in found


def run_rows(fields, n_groups=1):
    return [rows.run for rows in cost.count(replace(CONFIG, **fields), 4, 7, n_groups).rows.values()]


@pytest.mark.parametrize("fields, n_groups, rows", [
    *((dict(router=name, top_k=ROUTERS[name].FACTS.top_k or 2), 2, (ROUTERS[name].FACTS.top_k or 2) * 28) for name in (
        "softmax_topk", "switch", "noisy_topk", "sigmoid_bias", "sinkhorn", "base", "hash", "random", "uniform")),
    (dict(router="expert_choice"), 1, 5 * 12),  # each expert takes ceil(2 * 28 / 5) of the 28 tokens
    (dict(router="expert_choice"), 2, 2 * 5 * 6),  # ceil(2 * 14 / 5), twice
    (dict(router="expert_choice", top_k=5), 1, 5 * 28),
    (dict(router="expert_choice", capacity_factor=0.5), 1, 5 * 6),  # ceil(28 / 5), all of which it has
    (dict(capacity_factor=1.25, pad_experts=True), 1, 5 * 14),  # 1.25 * 2 * 28 / 5
    (dict(capacity_factor=1.25, pad_experts=True), 2, 2 * 5 * 7),
    (dict(capacity_factor=1.25, pad_experts=True), 4, 4 * 5 * 4),  # ceil(1.25 * 2 * 7 / 5 = 3.5)
    (dict(capacity_factor=0.3, pad_experts=True), 4, 4 * 5 * 1),  # ceil(0.84)
    (dict(capacity_factor=9.0, pad_experts=True), 4, 4 * 5 * 7),  # at most one slot a token
    (dict(capacity_factor=1.0, pad_experts=True, top_k=1, router="base"), 1, 5 * 6),  # ceil(28 / 5)
    (dict(pad_experts=True, top_k=1, router="base"), 1, 5 * 6),  # its plan: 6, 6, 6, 5, 5
    (dict(pad_experts=True, top_k=5), 2, 5 * 28),  # all have all
    (dict(pad_experts=True, n_experts=1, top_k=1), 2, 28),
    (dict(capacity_factor=1.0, pad_experts=True, router="gshard"), 1, 5 * 12),  # whether the second is used or not
])
def test_rows_that_are_known_without_a_run(fields, n_groups, rows):
    assert run_rows(fields, n_groups) == [rows] * 3


@pytest.mark.parametrize("n_groups", [1, 2])
def test_without_a_limit_all_experts_are_filled_up_to_the_busiest(n_groups):
    config, tokens_BS = replace(CONFIG, pad_experts=True), np.random.default_rng(0).integers(0, 13, (4, 7))
    result = batches.gradients(model.init_params(config), batches.cut(tokens_BS, tokens_BS, n_groups), config)
    busiest = np.array([[max((r.expert_A == e).sum() for e in range(5)) for r in of_group]
                        for of_group in result.routings])
    found = cost.count(config, 4, 7, n_groups)
    assert [rows.run for rows in found.rows.values()] == (5 * busiest).sum(axis=0).tolist()
    assert all(rows.kept == rows.chosen == 2 * 28 for rows in found.rows.values())
    assert found.padding_flops > 0


def test_more_experts_cost_the_router_alone():
    few, many = (cost.count(replace(CONFIG, n_experts=E), 4, 7) for E in (5, 45))
    assert many.forward_flops - few.forward_flops == 4 * 7 * 3 * 2 * 12 * 40  # tokens * layers * 2 * D * 40 more scores
    assert {place: n for place, n in many.work.items() if place.part != "router"} == {
        place: n for place, n in few.work.items() if place.part != "router"}


def test_more_experts_that_are_padded_up_to_a_whole_token_cost_more():
    # room for ceil(2 * 28 / 45) = 2 each: 90 rows, where 56 are chosen
    assert run_rows(dict(capacity_factor=1.0, pad_experts=True, n_experts=45)) == [90] * 3


def test_a_dense_layer_does_the_work_of_a_tokens_experts_unless_told():
    # two layers that route no more: the same experts' work, and no scores, 2 * 12 * 5 a layer and token
    routed, dense = (sum(n for place, n in formula.flops(ours.architecture(
        replace(CONFIG, first_dense_layers=first, n_shared_experts=1)), 4, 7).items() if place.way == "forward")
        for first in (0, 2))
    assert routed - dense == 4 * 7 * 2 * 2 * 12 * 5


def test_scores_grow_with_the_square_of_the_sequence_and_all_else_with_the_tokens():
    short, long = (formula.flops(ours.architecture(CONFIG), batch, sequence) for batch, sequence in ((6, 4), (3, 8)))
    assert short.keys() == long.keys()  # 24 tokens both times
    for place in short:
        assert long[place] == (2 if place.part == "attention scores" else 1) * short[place]
