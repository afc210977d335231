"""The study of causality: what must hold of every router and order, and that the measurement itself can tell."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe.analysis import causality
from minimoe.moe import routers
from minimoe.moe.capacity import ORDERS
from minimoe.moe.routers import ROUTERS, expert_choice, softmax_topk

ROWS = {(row.router, row.capacity_factor, row.drop_order, row.training): row for row in causality.study(trials=12)}


def test_every_router_with_every_order_is_examined_in_training_and_evaluation():
    """Dropless once, and every order with a capacity."""
    assert len(ROWS) == (len(routers.POLICIES) * (1 + len(ORDERS)) + 1) * 2
    assert {row.router for row in ROWS.values()} == set(ROUTERS)


@pytest.mark.parametrize("key", ROWS)
def test_what_is_declared_is_what_is_measured(key):
    assert ROWS[key].as_declared, ROWS[key]


@pytest.mark.parametrize("name", routers.POLICIES)
def test_a_causal_dropless_evaluation_passes_all_four(name):
    row = ROWS[name, None, "position", False]
    if routers.POLICIES[name].FACTS.causal_in_evaluation:
        assert (row.future, row.prefix, row.batch, row.cached) == (0, 0, 0, 0)
    else:
        assert min(row.future, row.prefix, row.cached) > 0


def test_soft_moe_mixes_the_future_in_but_not_other_sequences():
    for training in (True, False):
        row = ROWS["soft", None, "position", training]
        assert (row.future, row.prefix, row.batch, row.declared) == (1, 1, 0, False)
    assert row.cached == 1


@pytest.mark.parametrize("order", ["rank", "priority", "random"])
def test_orders_other_than_by_position_let_the_future_in_while_training(order):
    assert ROWS["softmax_topk", 0.75, order, True].future > 0
    assert ROWS["softmax_topk", 0.75, "position", True].future == 0


@pytest.mark.parametrize("training", [True, False])
def test_another_last_token_has_another_number_too(training):
    """Hash layers see nothing else of it; by rank its first choice comes before the second choices of earlier ones."""
    assert ROWS["hash", 0.75, "rank", training].future > 0
    assert ROWS["hash", 0.75, "position", training].future == 0


def test_with_a_capacity_a_prefix_has_less_room_and_a_token_alone_has_enough():
    """8 tokens of 16 have half the slots, so other tokens are dropped; one by one nobody is."""
    row = ROWS["softmax_topk", 0.75, "position", False]
    assert row.future == 0
    assert row.prefix > 0.5 and row.cached > 0.5


def test_by_position_the_order_of_the_batch_decides_who_is_dropped_and_by_priority_it_does_not():
    assert ROWS["softmax_topk", 0.75, "position", False].batch > 0.5
    assert ROWS["softmax_topk", 0.75, "priority", False].batch == 0


def test_the_random_order_is_by_position_in_evaluation():
    random, position = (ROWS["softmax_topk", 0.75, order, False] for order in ("random", "position"))
    assert random == replace(position, drop_order="random")


@pytest.mark.parametrize(("name", "lots"), [("softmax_topk", False), ("switch", True), ("noisy_topk", True),
                                            ("gshard", True), ("random", True), ("base", False), ("hash", False)])
def test_lots_are_noticed_in_training_and_there_are_none_in_evaluation(name, lots):
    assert (ROWS[name, None, "position", True].prefix is None) == lots
    assert ROWS[name, None, "position", False].prefix is not None


def test_training_is_not_decoded():
    assert all((row.cached is None) == row.training for row in ROWS.values())


def test_a_false_promise_is_found(monkeypatch):
    """Expert choice, declared causal."""
    monkeypatch.setattr(expert_choice, "FACTS", expert_choice.FACTS._replace(causal=True))
    assert not all(row.as_declared for row in causality.study(12, ("expert_choice",), factors=(None,)))


def test_false_modesty_is_found(monkeypatch):
    """Softmax top-k, declared not to be causal: it never looks ahead, so the flag is wrong."""
    monkeypatch.setattr(softmax_topk, "FACTS", softmax_topk.FACTS._replace(causal_in_evaluation=False))
    assert not all(row.as_declared for row in causality.study(12, ("softmax_topk",), factors=(None,)))


def test_a_change_of_the_last_token_of_expert_choice_by_hand():
    """Two tokens, one expert's room of one each: the second token, made surer, takes the first one's place."""
    policy, config = routers.POLICIES["expert_choice"], replace(causality.CONFIG, n_experts=2, top_k=1,
                                                                router="expert_choice")
    tokens = causality.Tokens.anonymous(np.ones(2, bool))
    weights = {"w_router_DE": np.eye(8)[:, :2]}
    first, second = np.eye(8)[0], np.eye(8)[1]
    before, _ = policy.forward(np.array([first, second]), weights, config, tokens)
    after, _ = policy.forward(np.array([first, 2 * first]), weights, config, tokens)
    assert list(zip(before.token_A, before.expert_A, strict=True)) == [(0, 0), (1, 1)]
    assert list(zip(after.token_A, after.expert_A, strict=True)) == [(0, 1), (1, 0)]


def test_the_table_has_a_line_a_configuration():
    rows = causality.study(3, ("softmax_topk", "random"))
    head, columns, *lines = causality.table(rows).splitlines()
    assert lines[0].split() == ["softmax_topk", "dropless", *"-------", "yes"]
    assert lines[5].split() == ["random", "dropless", "-", "lots", "lots", "-", "-", "-", "-", "yes"]
    assert len(rows) == 2 * 10 and lines[10] == ""
