"""Counted arrays: every matrix product is recorded, and no number changes.  Steps: every product at its place."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from minimoe import batches, cost, model
from minimoe.cost import counting
from minimoe.cost.places import Place
from tests import cases
from tests.unit.cost.covering import BY_ROUTER, CONFIG, TINY


def products_of(function):
    """The result of a function of a [2, 3] array and a [3, 4] array, and the products that it is counted with."""
    noted = []
    a, b = (cost.counted(np.arange(m * n, dtype=float).reshape(m, n), noted.append) for m, n in ((2, 3), (3, 4)))
    return function(a, b), noted


def into(out, a, b):
    np.matmul(a, b, out=out)
    return out


def in_place(a, b):
    a @= np.ones((3, 3))
    return a @ b


def into_plain(a, b):
    plain = np.zeros((2, 3))
    np.add(a, 1, out=plain)
    return plain @ np.ones((3, 4))


@pytest.mark.parametrize("function, flops", [
    (lambda a, b: a @ b, 2 * 2 * 3 * 4),
    (lambda a, b: np.ones((2, 3)) @ b, 48),
    (lambda a, b: into(np.empty((2, 4)), a, b), 48),
    (lambda a, b: into(b[:2] * 1, np.ones((2, 3)), np.ones((3, 4))), 48),
    (in_place, 2 * 2 * 3 * 3 + 48),
    (into_plain, 0),  # an array that was plain stays plain
    (lambda a, b: np.exp(b - 1)[:, 1:].T @ (2 * a).T.copy(), 2 * 3 * 3 * 2),
    (lambda a, b: np.ones((5, 1, 2, 3)) @ (np.ones((7, 1, 1)) * b), 5 * 7 * 48),
    (lambda a, b: a[:0] @ b, 0),
    (lambda a, b: np.concatenate([np.ones((1, 3)), a]) @ np.ones((3, 4)), 72),  # the second of a list alone is counted
    (lambda a, b: np.where(np.ones((5, 1), bool), np.ones((5, 3)), a[:1]) @ np.ones((3, 4)), 120),
    (lambda a, b: np.split(a, 2)[1] @ np.ones((3, 4)), 24),
    (lambda a, b: (np.nonzero(a)[0][:, None] * np.ones(3)) @ np.ones((3, 4)), 120),  # five of the numbers 0 to 5
    (lambda a, b: np.linalg.eigh(b[:, :3]).eigenvectors @ np.ones((3, 1)), 18),  # a tuple with names
    # of vectors, and number by number
    (lambda a, b: a[0] @ b + a[0] @ b[:, 0] + np.einsum("td,td->t", a, a).sum(), 0), (lambda a, b: a @ b[:, 0], 0),
])
def test_every_product_of_two_matrices_is_counted_by_hand(function, flops):
    assert sum(product.flops for product in products_of(function)[1]) == flops


def test_counting_leaves_the_array_and_its_numbers_alone():
    given = np.arange(6.0).reshape(2, 3)
    result = cost.counted(given, [].append) @ np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(result, np.arange(6).reshape(2, 3) @ np.arange(12).reshape(3, 4))
    assert type(given) is np.ndarray and np.shares_memory(cost.counted(given, [].append), given)
    out = np.empty((2, 4))
    assert np.matmul(cost.counted(np.ones((2, 3)), [].append), np.ones((3, 4)), out=out) is out and (out == 3).all()
    assert cost.counted(None, [].append) is None and type(products_of(lambda a, b: a.sum())[0]) is np.float64
    (halves, indices), _ = products_of(lambda a, b: (np.split(a, 2), np.nonzero(a)))
    assert type(halves) is list and type(indices) is tuple
    assert np.array(indices).tolist() == [[0, 0, 1, 1, 1], [1, 2, 0, 1, 2]] and halves[1].tolist() == [[3, 4, 5]]


def test_the_place_of_every_product_of_a_router_and_a_dense_block_by_hand():
    # y = x W has one product forward, and backward dx = dy W^T and dW = x^T dy: 6 tokens, D = 4, 2 experts, width 7
    config = replace(TINY, n_layers=2, first_dense_layers=1, d_dense=7)
    tokens_BS = np.random.default_rng(4).integers(0, 5, (2, 3))
    noted, routings = counting.noted_products(model.init_params(config, 4), tokens_BS, config, seed=4)
    found = defaultdict(list)
    for place, product in noted:
        found[place].append(product)
    assert found[1, "router", "forward"] == [((6, 4), (4, 2))]
    assert sorted(found[1, "router", "backward"]) == [((4, 6), (6, 2)), ((6, 2), (2, 4))]
    assert found[0, "dense", "forward"] == [((6, 4), (4, 7)), ((6, 4), (4, 7)), ((6, 7), (7, 4))]
    ways = [place.way for place, _ in noted]
    assert ways == sorted(ways, reverse=True)  # all of the forward, then all of the backward
    assert [len(of_group) for of_group in routings] == [1]
    assert counting.products(config, 2, 3, seed=4) == [product for _, product in noted]


def test_flops_are_added_up_by_way_part_and_layer():
    # the digits tell which were added
    work = {Place(0, "attention", "forward"): 1, Place(0, "attention", "backward"): 20,
            Place(0, "dense", "forward"): 300, Place(1, "attention", "forward"): 4000,
            Place(None, "head", "forward"): 50000, Place(None, "head", "backward"): 600000}
    counted = cost.Cost(None, work, {}, tokens=4)
    assert counted.flops() == counted.training_flops == 654321
    assert counted.flops("forward") == counted.forward_flops == 54301
    assert (counted.flops("backward"), counted.flops("update"), counted.flops(part="attention")) == (600020, 0, 4021)
    assert (counted.flops(layer=0), counted.flops(layer=None)) == (321, 650000)  # None: what is outside of the layers
    assert counted.flops("forward", "attention", 0) == 1
    assert (counted.forward_flops_per_token, counted.training_flops_per_token) == (54301 / 4, 654321 / 4)
    assert str(counted).splitlines() == [
        "FLOPs      forward  backward", "----------------------------", "attention    4,001        20",
        "dense          300         0", "head        50,000   600,000", "together    54,301   600,020",
        "4 tokens, 163,580 FLOPs per token"]
    # experts of two layers with 2 of 6 rows and 1 of 3 in empty slots
    work = {Place(0, "experts", "forward"): 60, Place(0, "experts", "backward"): 120, Place(0, "dense", "forward"): 999,
            Place(2, "experts", "forward"): 30}
    rows = {0: counting.Rows(9, 4, 6), 1: counting.Rows(0, 0, 0), 2: counting.Rows(3, 2, 3)}
    assert cost.Cost(None, work, rows, 1).padding_flops == 180 // 6 * 2 + 30 // 3


# Token t of a sequence goes to expert t modulo 3: of 4 tokens 2, 1 and 1; of two such sequences 4, 2 and 2
ROUND_ROBIN = replace(CONFIG, router="uniform", n_experts=3, top_k=1, n_layers=2, first_dense_layers=1)


@pytest.mark.parametrize("fields, n_groups, rows", [
    (dict(pad_experts=True), 1, (8, 8, 12)),  # 3 * 4, as many as the busiest has
    (dict(capacity_factor=1.0, pad_experts=True), 1, (8, 7, 9)),  # room for ceil(8/3) = 3 each: one is dropped
    (dict(capacity_factor=9.0, pad_experts=True), 1, (8, 8, 24)),  # no more than there are tokens
    (dict(pad_experts=True), 2, (8, 8, 12)),  # each group 3 * 2
    (dict(capacity_factor=0.75), 2, (8, 6, 6)),  # each group room for 1, 3 kept
    (dict(eval_capacity_factor=0.1), 1, (8, 8, 8)),  # the cost is that of training
])
def test_the_rows_of_experts_by_hand(fields, n_groups, rows):
    counted = cost.count(replace(ROUND_ROBIN, **fields), 2, 4, n_groups)
    assert counted.rows == {1: rows}
    _, kept, run = rows
    assert counted.flops(part="experts", layer=1) == run * 9 * 2 * 12 * 10
    assert counted.padding_flops == (run - kept) * 9 * 2 * 12 * 10


@pytest.mark.parametrize("config", [*BY_ROUTER.values(), replace(CONFIG, pad_experts=True, capacity_factor=0.6,
                                                                 first_dense_layers=1, n_shared_experts=1)],
                         ids=[*BY_ROUTER, "padded, dense and shared"])
def test_counting_changes_no_number(config):
    params, rng, noted = model.init_params(config), np.random.default_rng(0), []
    of_groups = batches.cut(*rng.integers(0, 13, (2, 2, 5)), 2)
    counted = {name: cost.counted(array, noted.append) for name, array in params.items()}
    plain, under_count = (batches.gradients(arrays, of_groups, config, np.random.default_rng(1))
                          for arrays in (params, counted))
    assert [losses.total for losses in under_count.losses] == [losses.total for losses in plain.losses] and noted
    cases.assert_equal(under_count.grads, plain.grads)


def test_a_run_is_counted_with_its_own_tokens_and_left_alone():
    # hash sends equal tokens to the same expert: of eight equal tokens one expert has room for ceil(0.5 * 8 / 6) = 1
    config = replace(CONFIG, router="hash", top_k=1, capacity_factor=0.5)
    params, functions = model.init_params(config), (model.block_forward, model.block_backward, model.model_forward)
    assert cost.count_run(params, np.full((2, 4), 7), config).rows == dict.fromkeys(range(3), (8, 1, 1))
    assert (model.block_forward, model.block_backward, model.model_forward) == functions
    cases.assert_equal(params, model.init_params(config))
    # a count is the same again, of the longest sequence unless given, and of its seed
    config = replace(CONFIG, n_layers=1, capacity_factor=0.7, drop_order="random")
    first, again, other = (cost.count(config, 4, 7, seed=seed) for seed in (0, 0, 1))
    assert first == again and first.rows != other.rows
    assert cost.count(CONFIG).tokens == 9 and cost.count(config, batch=2) == cost.count(config, batch=2, sequence=9)
