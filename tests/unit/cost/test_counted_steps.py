"""What a training step costs as counted in a run: every product at its place, the rows of experts, the padding."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from minimoe import batches, cost, model
from minimoe.config import ModelConfig
from minimoe.cost import counting
from minimoe.cost.places import Place
from minimoe.moe.routers import ROUTERS

CONFIG = ModelConfig(vocab_size=13, d_model=12, n_layers=3, n_heads=2, d_hidden=10, n_experts=5, top_k=2,
                     max_sequence=9)
TINY = ModelConfig(vocab_size=5, d_model=4, n_layers=1, n_heads=2, n_kv_heads=1, d_hidden=3, n_experts=2, top_k=1)

# 2 sequences of 3 tokens, T = 6; D = 4, H = 2 heads of P = 2 on G = 1 key head, so that Q = 2 * 3 queries stand on it
DENSE_THEN_MOE = replace(TINY, n_layers=2, first_dense_layers=1, d_dense=7, top_k=2, n_shared_experts=2)
X, DX = (6, 4), (4, 6)  # x_TD, and x_TD.T
OF_ATTENTION = {
    "forward": [(X, (4, 4)), (X, (4, 2)), (X, (4, 2)), (X, (4, 4))],  # q, k, v, o
    "backward": [(X, (4, 4)), (DX, X), (X, (4, 4)), (DX, X)] + 2 * [((6, 2), (2, 4)), (DX, (6, 2))]}  # o, q; k, v
OF_SCORES = {
    "forward": [((2, 1, 3, 2), (2, 1, 2, 6)), ((2, 1, 6, 3), (2, 1, 3, 2))],  # k q^T, then weights and values
    "backward": [((2, 1, 3, 6), (2, 1, 6, 2)), ((2, 1, 3, 2), (2, 1, 2, 6)),  # dv, dweight
                 ((2, 1, 3, 6), (2, 1, 6, 2)), ((2, 1, 6, 3), (2, 1, 3, 2))]}  # dk, dq


def of_linear(n_in, n_out):
    """Of y = x W: dx and dW take two."""
    return {"forward": [((6, n_in), (n_in, n_out))],
            "backward": [((6, n_out), (n_out, n_in)), ((n_in, 6), (6, n_out))]}


def of_swiglu(width):
    inner, outer = of_linear(4, width), of_linear(width, 4)
    return {way: inner[way] + inner[way] + outer[way] for way in inner}


def test_the_place_of_every_product_by_hand():
    expected = {
        (0, "attention"): OF_ATTENTION, (0, "attention scores"): OF_SCORES, (0, "dense"): of_swiglu(7),
        (1, "attention"): OF_ATTENTION, (1, "attention scores"): OF_SCORES, (1, "router"): of_linear(4, 2),
        (1, "experts"): {way: 2 * noted for way, noted in of_swiglu(3).items()},  # each token has both
        (1, "dense"): of_swiglu(6),  # two shared experts side by side
        (None, "head"): of_linear(4, 5)}
    tokens_BS = np.array([[0, 1, 2], [3, 4, 0]])
    noted, routings = counting.noted_products(model.init_params(DENSE_THEN_MOE), tokens_BS, DENSE_THEN_MOE)
    found = defaultdict(list)
    for place, product in noted:
        found[place].append(product)
    assert {place: sorted(products) for place, products in found.items()} == {
        Place(layer, part, way): sorted(products)
        for (layer, part), of_part in expected.items() for way, products in of_part.items()}
    assert [len(of_group) for of_group in routings] == [1]
    ways = [place.way for place, _ in noted]
    assert ways == sorted(ways, reverse=True)  # all of the forward, then all of the backward


def test_the_flops_of_a_tiny_model_by_hand():
    # T = 6 tokens.  attention 6 * 2 * (16 + 8 + 8 + 16) = 576;  scores, both products 2 * 2 sequences * 6 * 2 * 3 = 144
    # dense 6 * 3 * 2*4*7 = 1008;  router 6 * 2*4*2 = 96;  two experts a token 12 * 3 * 2*4*3 = 864, the shared as many
    # head 6 * 2*4*5 = 240
    forward = {(0, "attention"): 576, (0, "attention scores"): 288, (0, "dense"): 1008, (1, "attention"): 576,
               (1, "attention scores"): 288, (1, "router"): 96, (1, "experts"): 864, (1, "shared experts"): 864,
               (None, "head"): 240}
    counted = cost.count(DENSE_THEN_MOE, 2, 3)
    assert counted.work == {Place(*at, way): times * flops for at, flops in forward.items()
                            for way, times in (("forward", 1), ("backward", 2))}
    assert counted.forward_flops == 4800 and counted.training_flops == 14400
    assert counted.forward_flops_per_token == 800 and counted.training_flops_per_token == 2400


def test_the_shapes_alone_are_those_of_the_places():
    noted, _ = counting.noted_products(model.init_params(CONFIG, 4),
                                       np.random.default_rng(4).integers(0, 13, (2, 5)), CONFIG, seed=4)
    found = cost.products(CONFIG, 2, 5, seed=4)
    assert found == [product for _, product in noted]
    assert sum(product.flops for product in found) == cost.count(CONFIG, 2, 5, seed=4).training_flops


@pytest.mark.parametrize("fields, first, second", [
    (dict(first_dense_layers=1, n_shared_experts=1), "dense", "shared experts"),
    (dict(first_dense_layers=1), "dense", None), (dict(n_shared_experts=1), "shared experts", "shared experts"),
    (dict(first_dense_layers=2), "dense", "dense")])
def test_a_shared_expert_is_told_from_a_dense_layer(fields, first, second):
    counted = cost.count(replace(CONFIG, n_layers=2, **fields), 1, 4)
    for layer, expected in enumerate((first, second)):
        of_layer = {place.part for place in counted.work if place.layer == layer}
        assert of_layer & {"dense", "shared experts"} == ({expected} if expected else set())


def test_flops_are_added_up_by_way_part_and_layer():
    # the digits tell which were added
    work = {Place(0, "attention", "forward"): 1, Place(0, "attention", "backward"): 20,
            Place(0, "dense", "forward"): 300, Place(1, "attention", "forward"): 4000,
            Place(None, "head", "forward"): 50000, Place(None, "head", "backward"): 600000}
    counted = cost.Cost(None, work, {}, tokens=4)
    assert counted.flops() == counted.training_flops == 654321
    assert counted.flops("forward") == counted.forward_flops == 54301
    assert counted.flops("backward") == 600020
    assert counted.flops("update") == 0
    assert counted.flops(part="attention") == 4021
    assert counted.flops(layer=0) == 321
    assert counted.flops(layer=None) == 650000  # what is outside of the layers
    assert counted.flops("forward", "attention", 0) == 1
    assert counted.flops("forward", layer=None) == 50000
    assert counted.forward_flops_per_token == 54301 / 4 and counted.training_flops_per_token == 654321 / 4


# Token t of a sequence goes to expert t modulo 3: of 4 tokens 2, 1 and 1; of two such sequences 4, 2 and 2
IN_TURN = replace(CONFIG, router="uniform", n_experts=3, top_k=1, n_layers=2, first_dense_layers=1)


@pytest.mark.parametrize("fields, n_groups, rows", [
    (dict(), 1, (8, 8, 8)),
    (dict(pad_experts=True), 1, (8, 8, 12)),  # 3 * 4, as many as the busiest has
    (dict(capacity_factor=1.0), 1, (8, 7, 7)),  # room for ceil(8/3) = 3 each: one is dropped
    (dict(capacity_factor=1.0, pad_experts=True), 1, (8, 7, 9)),
    (dict(capacity_factor=0.75), 1, (8, 6, 6)),  # room for 2 each
    (dict(capacity_factor=0.75, pad_experts=True), 1, (8, 6, 6)),  # and so none empty
    (dict(capacity_factor=2.0, pad_experts=True), 1, (8, 8, 18)),  # ceil(16/3) = 6
    (dict(capacity_factor=9.0, pad_experts=True), 1, (8, 8, 24)),  # no more than there are tokens
    (dict(), 2, (8, 8, 8)),
    (dict(pad_experts=True), 2, (8, 8, 12)),  # each group 3 * 2
    (dict(capacity_factor=0.75), 2, (8, 6, 6)),  # each group room for 1, 3 kept
    (dict(capacity_factor=1.0, pad_experts=True), 2, (8, 8, 12)),  # each group room for ceil(4/3) = 2
    (dict(capacity_factor=1.0, pad_experts=True, global_balance=True, balance_coef=0.1), 2, (8, 8, 12)),
    (dict(eval_capacity_factor=0.1), 1, (8, 8, 8)),  # the cost is that of training
])
def test_the_rows_of_experts_by_hand(fields, n_groups, rows):
    counted = cost.count(replace(IN_TURN, **fields), 2, 4, n_groups)
    assert counted.rows == {1: rows}
    chosen, kept, run = rows
    assert counted.flops("forward", "experts", 1) == run * 3 * 2 * 12 * 10
    assert counted.flops("backward", "experts", 1) == run * 6 * 2 * 12 * 10
    assert counted.padding_flops == (run - kept) * 9 * 2 * 12 * 10


def test_the_padding_of_all_layers_is_added_up():
    # two layers, each with two empty slots
    counted = cost.count(replace(IN_TURN, first_dense_layers=0, capacity_factor=1.0, pad_experts=True), 2, 4)
    assert counted.rows == {0: (8, 7, 9), 1: (8, 7, 9)}
    assert counted.padding_flops == 2 * 2 * 9 * 2 * 12 * 10


def test_the_padding_of_a_cost_by_hand():
    work = {Place(0, "experts", "forward"): 60, Place(0, "experts", "backward"): 120, Place(0, "dense", "forward"): 999,
            Place(2, "experts", "forward"): 30}
    rows = {0: counting.Rows(9, 4, 6), 1: counting.Rows(0, 0, 0), 2: counting.Rows(3, 3, 3)}
    assert cost.Cost(None, work, rows, 1).padding_flops == 180 // 6 * 2


def test_layers_without_a_router_have_no_rows():
    assert list(cost.count(replace(CONFIG, moe_every=2), 1, 4).rows) == [1]
    for fields in (dict(router="soft"), dict(first_dense_layers=3)):
        counted = cost.count(replace(CONFIG, **fields), 1, 4)
        assert counted.rows == {} and counted.padding_flops == 0


@pytest.mark.parametrize("factor", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("order", ["position", "random"])
def test_dropped_rows_are_not_computed(factor, order):
    config = replace(CONFIG, capacity_factor=factor, eval_capacity_factor=9.0, drop_order=order)
    tokens_BS = np.random.default_rng(3).integers(0, 13, (4, 7))  # the batch that seed 3 counts
    result = batches.gradients(model.init_params(config, 3), batches.cut(tokens_BS, tokens_BS, 2), config,
                              np.random.default_rng(3))
    dropped = sum((~r.kept_A).sum() for routings in result.routings for r in routings)
    counted, dropless = (cost.count(c, 4, 7, 2, seed=3) for c in (config, replace(config, capacity_factor=None)))
    saved = dropped * 3 * 2 * 12 * 10  # three products [D, F] a row
    assert saved > 0
    assert counted.forward_flops == dropless.forward_flops - saved
    assert counted.training_flops == 3 * counted.forward_flops
    assert sum(rows.chosen - rows.kept for rows in counted.rows.values()) == dropped


@pytest.mark.parametrize("router", ["gshard", "st_moe"])
def test_a_second_expert_that_is_not_used_is_not_chosen(router):
    counted = cost.count(replace(CONFIG, router=router), 4, 9)
    for rows in counted.rows.values():
        assert 36 <= rows.chosen <= 72 and rows.chosen == rows.kept == rows.run
    assert any(rows.chosen < 72 for rows in counted.rows.values())


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("fields", [
    dict(), dict(pad_experts=True, capacity_factor=0.6), dict(first_dense_layers=1, n_shared_experts=1)])
def test_counting_changes_no_number(router, fields):
    fields = {} if ROUTERS[router].FACTS.soft else fields
    config = replace(CONFIG, router=router, top_k=ROUTERS[router].FACTS.top_k or 2, **fields)
    params, rng = model.init_params(config), np.random.default_rng(0)
    of_groups, noted = batches.cut(*rng.integers(0, 13, (2, 4, 7)), 2), []
    counted = {name: cost.counted(array, noted.append) for name, array in params.items()}
    plain, under_count = (batches.gradients(arrays, of_groups, config, np.random.default_rng(1))
                          for arrays in (params, counted))
    assert [losses.total for losses in under_count.losses] == [losses.total for losses in plain.losses]
    assert under_count.grads.keys() == plain.grads.keys()
    for name, grad in plain.grads.items():
        np.testing.assert_array_equal(under_count.grads[name], grad)
        assert under_count.grads[name].dtype == grad.dtype == np.float32
    assert noted


def test_counting_a_run_leaves_its_parameters_alone():
    params, tokens_BS = model.init_params(CONFIG), np.arange(8).reshape(2, 4)
    before = {name: array.copy() for name, array in params.items()}
    functions = model.block_forward, model.block_backward, model.model_forward
    counted = cost.count_run(params, tokens_BS, CONFIG)
    assert (model.block_forward, model.block_backward, model.model_forward) == functions
    assert all(type(array) is np.ndarray and np.array_equal(array, before[name]) for name, array in params.items())
    assert counted.tokens == 8


def test_a_run_is_counted_with_its_own_tokens():
    # hash sends equal tokens to the same expert: of eight equal tokens one expert has room for ceil(0.5 * 8 / 5) = 1
    config = replace(CONFIG, router="hash", top_k=1, capacity_factor=0.5)
    counted = cost.count_run(model.init_params(config), np.full((2, 4), 7), config)
    assert counted.rows == dict.fromkeys(range(3), (8, 1, 1))


def test_groups_share_the_work_and_not_the_slots():
    whole, in_two = (cost.count(replace(CONFIG, capacity_factor=1.0, pad_experts=True), 4, 7, n) for n in (1, 2))
    # room for ceil(2*28/5) = 12 of 28 tokens, and for ceil(2*14/5) = 6 in each half: 5 * 12 rows both times
    assert {rows.run for rows in (*whole.rows.values(), *in_two.rows.values())} == {60}
    assert whole.work == in_two.work and whole.tokens == in_two.tokens == 28
    # of 8 sequences, ceil(2*56/5) = 23 once, and 12 twice
    assert [cost.count(replace(CONFIG, capacity_factor=1.0, pad_experts=True), 8, 7, n).rows[0].run
            for n in (1, 2)] == [115, 120]


def test_groups_must_divide_the_sequences():
    with pytest.raises(ValueError, match="groups = 3: must be a whole number that divides the 4 sequences"):
        cost.count(CONFIG, 4, 7, groups=3)


def test_a_count_by_itself_is_the_same_again_and_another_seed_is_another_batch():
    config = replace(CONFIG, capacity_factor=0.7, drop_order="random")
    first, again, other = (cost.count(config, 4, 7, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.rows != other.rows


def test_cost_is_of_the_longest_sequence_unless_told():
    counted = cost.count(CONFIG, batch=2)
    assert counted == cost.count(CONFIG, batch=2, sequence=9) and counted.tokens == 18
    assert cost.count(CONFIG).tokens == 9
    assert counted.parameters == cost.count_parameters(CONFIG)
