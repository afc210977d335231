"""Costs: FLOPs as counted against the formula and by hand, parameters by hand, bytes of known arrays."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import model
from minimoe.analysis import cost
from minimoe.config import ModelConfig

CONFIG = ModelConfig(vocab_size=13, d_model=12, n_layers=3, n_heads=2, d_hidden=10, n_experts=5, top_k=2,
                     max_sequence=9)
VARIANTS = {
    "sparse": CONFIG,
    "grouped heads": replace(CONFIG, n_kv_heads=1),
    "tied": replace(CONFIG, tie_embeddings=True),
    "one expert a token": replace(CONFIG, top_k=1),
    "all experts": replace(CONFIG, top_k=5),
    "dense": replace(CONFIG, n_experts=1, top_k=1),
    "one layer": replace(CONFIG, n_layers=1),
    "shared experts": replace(CONFIG, n_shared_experts=3),
    "first layer dense": replace(CONFIG, first_dense_layers=1, d_dense=7),
    "every second layer": replace(CONFIG, moe_every=2, n_shared_experts=1),
    "no layer with a router": replace(CONFIG, first_dense_layers=3),
}
TINY = ModelConfig(vocab_size=5, d_model=4, n_layers=1, n_heads=2, n_kv_heads=1, d_hidden=3, n_experts=2, top_k=1)

each_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def flops_of(function):
    """FLOPs that `function` of a [2, 3] array `a` and a [3, 4] array `b` is counted with, and its result."""
    tally = []
    a, b = (cost.counted(np.arange(m * n, dtype=float).reshape(m, n), tally) for m, n in ((2, 3), (3, 4)))
    return function(a, b), sum(product.flops for product in tally)


def into(out, a, b):
    np.matmul(a, b, out=out)
    return out


def in_place(a, b):
    a @= np.ones((3, 3))
    return a @ b


@pytest.mark.parametrize("function, flops", [
    (lambda a, b: a @ b, 2 * 2 * 3 * 4),
    (lambda a, b: np.matmul(a, b), 48),
    (lambda a, b: a @ np.ones((3, 4)), 48),
    (lambda a, b: np.ones((2, 3)) @ b, 48),
    (lambda a, b: into(np.empty((2, 4)), a, b), 48),
    (lambda a, b: into(b[:2] * 1, a, b), 48),
    (in_place, 2 * 2 * 3 * 3 + 48),
    (lambda a, b: a[:1] @ b[:, 1:], 2 * 1 * 3 * 3),
    (lambda a, b: b.T @ a.T, 2 * 4 * 3 * 2),
    (lambda a, b: a.swapaxes(0, 1).reshape(2, 3) @ b, 48),
    (lambda a, b: np.exp(a - 1) @ (2 * b).copy(), 2 * 2 * 3 * 4),
    (lambda a, b: a @ b @ b.T, 48 + 2 * 2 * 4 * 3),
    (lambda a, b: np.ones((5, 2, 3)) @ b, 5 * 48),
    (lambda a, b: a @ np.ones((5, 3, 4)), 5 * 48),
    (lambda a, b: np.ones((5, 1, 2, 3)) @ (np.ones((7, 1, 1)) * b), 5 * 7 * 48),
    (lambda a, b: a[0] @ b, 2 * 3 * 4),
    (lambda a, b: a @ b[:, 0], 2 * 2 * 3),
    (lambda a, b: a[0] @ b[:, 0], 2 * 3),
    (lambda a, b: a[:0] @ b, 0),
    (lambda a, b: (a * 2 + a).sum() + np.exp(b).max(), 0),
])
def test_every_product_is_counted_by_hand(function, flops):
    assert flops_of(function)[1] == flops


def test_counting_changes_no_number():
    result, _ = flops_of(lambda a, b: a @ b)
    np.testing.assert_array_equal(result, np.arange(6).reshape(2, 3) @ np.arange(12).reshape(3, 4))
    params = model.init_params(CONFIG)
    tokens_BS = np.arange(8).reshape(2, 4)
    counted = {name: cost.counted(array, []) for name, array in params.items()}
    np.testing.assert_array_equal(model.forward(counted, tokens_BS, CONFIG)[0],
                                  model.forward(params, tokens_BS, CONFIG)[0])


def test_an_array_given_for_the_output_is_what_comes_back():
    given = np.empty((2, 4))
    assert np.matmul(cost.counted(np.ones((2, 3)), []), np.ones((3, 4)), out=given) is given
    np.testing.assert_array_equal(given, 3)


def test_two_tallies_are_kept_apart():
    first, second = [], []
    cost.counted(np.ones((2, 3)), first) @ np.ones((3, 4))
    cost.counted(np.ones((5, 3)), second) @ np.ones((3, 1))
    assert first == [((2, 3), (3, 4))] and second == [((5, 3), (3, 1))]


def test_forward_flops_of_a_tiny_model_by_hand():
    # a token: q, k, v, o 2*4*4 + 2*4*2 + 2*4*2 + 2*4*4 = 96;  scores and mix with 3 keys, 2 heads of width 2: 2*24
    # router 2*4*2 = 16;  one expert 3 * 2*4*3 = 72;  head 2*4*5 = 40;  272 for each of 6 tokens
    assert cost.forward_flops_formula(TINY, batch=2, sequence=3) == 6 * 272
    assert cost.count(TINY, batch=2, sequence=3).forward_flops == 6 * 272


@each_variant
@pytest.mark.parametrize("batch, sequence", [(1, 1), (4, 7)])
def test_counted_flops_equal_the_formula(config, batch, sequence):
    counted = cost.count(config, batch, sequence)
    assert counted.forward_flops == cost.forward_flops_formula(config, batch, sequence)
    assert counted.training_flops == 3 * counted.forward_flops  # the backward has two products for each


@pytest.mark.parametrize("factor", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("order", ["position", "random"])
def test_dropped_rows_are_not_computed(factor, order):
    config = replace(CONFIG, capacity_factor=factor, eval_capacity_factor=9.0, drop_order=order)
    rng = np.random.default_rng(3)
    tokens_BS = rng.integers(0, 13, (4, 7))  # the batch that seed 3 counts
    (_, routings), _ = model.model_forward(model.init_params(config, 3), tokens_BS, config, training=True, rng=rng)
    dropped = sum((~r.kept_A).sum() for r in routings)
    counted = cost.count(config, 4, 7, seed=3)
    saved = dropped * 3 * 2 * 12 * 10  # three products [D, F] a row
    assert saved > 0
    assert counted.forward_flops == cost.forward_flops_formula(config, 4, 7) - saved
    assert counted.training_flops == 3 * counted.forward_flops


def test_more_experts_cost_the_router_alone():
    few, many = (cost.count(replace(CONFIG, n_experts=E), 4, 7).forward_flops for E in (5, 45))
    assert many - few == 4 * 7 * 3 * 2 * 12 * 40  # tokens * layers * 2 * D * 40 more scores


def test_a_dense_layer_does_the_work_of_a_tokens_experts_unless_told():
    # two layers that route no more: the same experts' work, and no scores, 2 * 12 * 5 a layer and token
    routed, dense = (cost.forward_flops_formula(replace(CONFIG, first_dense_layers=n, n_shared_experts=1), 4, 7)
                     for n in (0, 2))
    assert routed - dense == 4 * 7 * 2 * 2 * 12 * 5


def test_cost_is_of_the_longest_sequence_unless_told():
    counted = cost.count(CONFIG, batch=2)
    assert counted == cost.count(CONFIG, batch=2, sequence=9) and counted.tokens == 18
    assert cost.count(CONFIG).tokens == 9
    assert counted.parameters == cost.count_parameters(CONFIG)


def test_cost_per_token_by_hand():
    counted = cost.Cost(cost.count_parameters(TINY), forward_flops=60, training_flops=180, tokens=4)
    assert (counted.forward_flops_per_token, counted.training_flops_per_token) == (15, 45)


def test_parameters_of_a_tiny_model_by_hand():
    # embedding and head 5*4 each;  q and o 4*2*2, k and v 4*1*2;  three gains of 4;  router 4*2
    # experts 2 * 3 * 4*3 = 72, of which a token uses half
    total = 2 * 20 + 2 * 16 + 2 * 8 + 3 * 4 + 8 + 72
    active = total - 36
    assert cost.count_parameters(TINY) == (total, active, active - 20, active - 40)


def test_parameters_of_a_tied_model_by_hand():
    # one table: it is the head as well, so leaving out the input embedding leaves it in
    total = 20 + 2 * 16 + 2 * 8 + 3 * 4 + 8 + 72
    active = total - 36
    assert cost.count_parameters(replace(TINY, tie_embeddings=True)) == (total, active, active, active - 20)


@each_variant
def test_parameters_equal_the_sizes_of_the_arrays(config):
    params, counted = model.init_params(config), cost.count_parameters(config)
    assert counted.total == sum(array.size for array in params.values())
    chosen = sum(array.size for name, array in params.items() if "_E" in name)  # stacked: one a token's expert
    assert counted.active == counted.total - chosen + chosen * config.top_k / config.n_experts


@pytest.mark.parametrize("name", ["dense", "all experts", "no layer with a router"])
def test_where_every_expert_works_all_parameters_are_active(name):
    counted = cost.count_parameters(VARIANTS[name])
    assert counted.active == counted.total


def test_cache_bytes_by_hand():
    # owned: the weight.  shared: 100 doubles seen three times.  own: 10 int64 and 7 bytes
    weight, shared = np.zeros((3, 4)), np.zeros((10, 10))
    cache = (weight, weight.T[:2], [shared, shared.T, {"part": shared[2:5][:, 1:]}], (np.zeros(10, np.int64), None, 3),
             np.zeros(7, bool))
    assert cost.cache_bytes(cache, {"w": weight}) == 800 + 80 + 7


def test_a_small_view_keeps_its_whole_buffer():
    assert cost.cache_bytes([np.zeros(1000)[:1]], {}) == 8000


def test_memory_of_a_step_by_hand():
    # 180 numbers of four bytes, once each for parameters and gradients, twice for the moments
    memory = cost.step_memory(TINY, batch=2, sequence=3)
    assert memory[:3] == (720, 720, 1440)


@pytest.mark.parametrize("order", ["position", "random"])
def test_activations_of_a_step_are_those_of_its_cache(order):
    config, rng = replace(CONFIG, capacity_factor=0.7, drop_order=order), np.random.default_rng(0)
    params, (tokens_BS, targets_BS) = model.init_params(config), rng.integers(0, 13, (2, 4, 7))
    _, cache = model.objective_forward(params, tokens_BS, targets_BS, config, training=True, rng=rng)
    assert cost.step_memory(config, 4, 7).activations == cost.cache_bytes(cache, params)


def test_activations_do_not_grow_with_idle_parameters():
    wide, wider = (cost.step_memory(replace(CONFIG, vocab_size=V, tie_embeddings=True), 1, 2) for V in (13, 26))
    # the logits' 13 more columns are kept as probabilities, for two tokens; the table itself is no activation
    assert wider.activations - wide.activations == 2 * 13 * 4


def test_peak_is_the_most_at_once():
    def grow_and_shrink():
        first = np.ones(1_000_000)
        del first
        second = np.ones(500_000), np.ones(750_000)
        return len(second)

    before = np.ones(2_000_000)
    assert cost.peak_bytes(grow_and_shrink) == pytest.approx(10_000_000, rel=0.01)
    assert before.all()


def test_peak_is_measured_anew_each_time():
    cost.peak_bytes(lambda: np.ones(1_000_000))
    assert cost.peak_bytes(lambda: np.ones(10_000)) == pytest.approx(80_000, rel=0.05)


def test_peak_of_a_function_that_fails_stops_measuring():
    with pytest.raises(ZeroDivisionError):
        cost.peak_bytes(lambda: 1 / 0)
    assert not cost.tracemalloc.is_tracing()
