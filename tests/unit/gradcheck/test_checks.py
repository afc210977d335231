"""The checks of operations and layers: they pass, leave nothing out, and report what they found."""

import re

import numpy as np
import pytest

from minimoe import gradcheck
from minimoe.gradcheck import checks
from minimoe.moe import capacity, losses, routers
from minimoe.nn import ops

CASES = gradcheck.layer_cases()


def test_the_operations_are_right_to_rounding_error():
    for found in gradcheck.check_ops():
        assert found.ok and found.worst < 1e-12 == found.rows[0].tolerance, found


def test_the_layer_cases_have_every_router_gate_and_drop_order():
    for name, page in routers.ROUTERS.items():
        facts, own = page.FACTS, [config for config in CASES.values() if config.router == name]
        orders = set() if facts.soft else capacity.ORDERS.keys()
        assert {config.drop_order for config in own if config.capacity_factor is not None} == orders
        assert {config.top_k for config in own} >= ({facts.top_k} if facts.top_k else {1, 2, 4})
        gates = {True, False} if "renormalize" in facts.options else {own[0].gates_sum_to_one}
        assert {config.gates_sum_to_one for config in own} >= gates
    every = CASES.values()
    assert {config.layer_kinds[0] for config in every} == {"moe", "soft", "dense"}
    assert any(config.n_shared_experts for config in every)
    assert {config.capacity_factor is None for config in every if config.pad_experts} == {True, False}
    assert any(config.top_groups < config.n_groups for config in every)


@pytest.mark.parametrize(("case", "without"), [
    ("noisy_topk, K=2, dropless", set()), ("softmax_topk, K=2, dropless", {"load"}),
    ("soft, K=2", {*losses.LOSSES, "all together"}), ("dense", {*losses.LOSSES, "all together"})])
def test_a_layer_has_the_objectives_that_make_sense(case, without):
    assert set(checks.objectives_of(CASES[case])) == gradcheck.OBJECTIVES.keys() - without


def test_the_objectives_are_the_task_each_loss_and_all_together_with_weights_that_tell_them_apart():
    every = gradcheck.OBJECTIVES["all together"]
    assert list(gradcheck.OBJECTIVES) == ["task", *losses.LOSSES, "all together"]
    assert every.keys() == {"task", *losses.LOSSES} and len(set(every.values())) == 1 + len(losses.LOSSES)


@pytest.mark.parametrize(("case", "one_by_one"), [
    ("softmax_topk, K=2, drop by position", True), ("softmax_topk, K=2, dropless", False), ("soft, K=2", False)])
def test_a_layer_is_right_number_by_number_and_drops_tokens_only_with_a_capacity(case, one_by_one):
    config, found = CASES[case], gradcheck.check_layer(CASES[case], one_by_one=one_by_one)
    assert found.ok and found.worst < 1e-12, found
    dropped = [int(re.match(r"(\d+) of \d+ assignments dropped", note)[1]) for note in found.notes]
    assert len(dropped) == len(config.moe_layers)
    assert any(dropped) == (config.capacity_factor is not None)


def test_an_objective_leaves_the_others_out():
    """The task moves experts, an auxiliary loss alone does not."""
    task, balance = (gradcheck.check_layer(CASES["softmax_topk, K=2, dropless"], name) for name in ("task", "balance"))
    assert all(row.length > 1 for row in task.rows)
    assert {row.name for row in balance.rows if row.length > 0} == {"x_TD", "w_router_DE"}


PAIR = {"x": np.arange(6.0).reshape(2, 3), "b": np.ones(3)}


def check_sum(backward, forward=lambda x, b: (x * x + b, x)):
    """The check of x^2 + b, whose gradients are 2 x dy and, for b, the sum of dy over the rows."""
    return gradcheck.check_pair("sum", forward, backward, PAIR)


def test_a_backward_may_return_its_gradients_as_a_list_or_by_name():
    for pack in (tuple, list, lambda grads: dict(zip(PAIR, grads, strict=True))):
        assert check_sum(lambda dy, x, pack=pack: pack([2 * x * dy, dy.sum(axis=0)])).ok
    assert gradcheck.check_pair("square", lambda x: (x * x, x), lambda dy, x: [2 * x * dy], {"x": PAIR["x"]}).ok


@pytest.mark.parametrize(("backward", "wrong", "words"), [
    (lambda dy, x: (2 * x * dy, dy.sum(axis=0, keepdims=True)), {"b"}, r"b: the gradient has shape \(1, 3\).* \(3,\)"),
    (lambda dy, x: ((2 * x * dy).T, dy.sum(axis=0)), {"x"}, r"x: the gradient has shape \(3, 2\), the array \(2, 3\)"),
    (lambda dy, x: 2 * x * dy, {"b"}, "b: it has no gradient"),
    (lambda dy, x: (2 * x * dy, dy.sum(axis=0), dy), {"gradient 3"}, "gradient 3: no array has this name"),
    (lambda dy, x: {"x": 2 * x * dy, "B": dy.sum(axis=0)}, {"b", "B"}, "b: it has no gradient"),
    (lambda dy, x: (dy.__imul__(2 * x), dy.sum(axis=0)), {"b"}, "modifies its input gradient in place")])
def test_what_a_backward_returns_is_not_taken_on_trust(backward, wrong, words):
    found = check_sum(backward)
    assert {row.name for row in found.rows if not row.ok} == wrong and re.search(words, str(found))


def test_a_forward_that_changes_its_input_or_fills_a_buffer_is_told_so_and_its_right_gradient_is_right():
    def forward(x, b):
        x *= x
        y = np.zeros((2, 3))
        y[:] = x + b
        return y, np.sqrt(x)

    text = str(check_sum(lambda dy, x: (2 * x * dy, dy.sum(axis=0)), forward))
    assert text.startswith("sum: right") and "modifies its input in place: x" in text and "y[:] = x + b" in text
    with pytest.raises(ValueError, match="forward returned a ndarray: must be two things"):
        check_sum(len, lambda x, b: x + b)


def test_whole_numbers_without_a_gradient_stay_as_they_are():
    """The backward of an embedding has nothing for its places, which come first; but x, whole too, has a gradient."""
    arrays = {"places": np.array([2, 0, 2]), "w": np.ones((3, 2))}
    for pack in (lambda dw: dw, lambda dw: (None, dw), lambda dw: {"w": dw}):
        found = gradcheck.check_pair("embedding", ops.embedding_forward,
                                     lambda dy, cache, pack=pack: pack(ops.embedding_backward(dy, cache)), arrays)
        assert found.ok and found.notes == ["Not checked, since there is no gradient: places."]
    found = gradcheck.check_pair("scale", lambda x, c: (x * c, (x, c)),
                                 lambda dy, cache: ((dy * cache[1]).astype(cache[0].dtype), (dy * cache[0]).sum()),
                                 {"x": np.arange(3), "c": np.array(1.5)})
    assert found.ok and [row.name for row in found.rows] == ["x", "c"]


@pytest.mark.parametrize(("backward", "forward", "reason"), [
    (lambda dy, x: (dy for _ in range(2)), lambda x, b: (x + b, x), "backward returned a generator"),
    (lambda dy, x: (dy, dy), lambda x, b: ([[1.0], [1.0, 2.0]], x), "output of forward has rows of different lengths")])
def test_what_is_no_array_is_named(backward, forward, reason):
    with pytest.raises(ValueError, match=reason):
        check_sum(backward, forward)
    assert "x: the gradient has rows of different lengths" in str(check_sum(lambda dy, x: ([[1.0], [1.0, 2.0]], dy)))
