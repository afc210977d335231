"""The study of causality: what must hold for every router and order, and that the measurement detects leaks."""

import functools
from dataclasses import replace

import pytest

from minimoe.analysis import causality
from minimoe.moe import capacity, routers


@functools.cache
def study():
    """The rows of every router, in order."""
    return causality.study(trials=3)


@functools.cache
def row_of():
    """(router, capacity factor, drop order, training) -> its row."""
    return {(row.router, row.capacity_factor, row.drop_order, row.training): row for row in study()}


def softmax(order, training=False):
    return row_of()["softmax_topk", 0.75, order, training]


def test_every_router_with_every_order_is_as_declared_in_training_and_evaluation():
    """Dropless once, and every order with a capacity; Soft MoE has neither."""
    assert len(row_of()) == len(study()) == (len(routers.POLICIES) * (1 + len(capacity.ORDERS)) + 1) * 2
    assert [key for key, row in row_of().items() if not row.as_declared] == []
    assert all((row.cached is None) == row.training for row in study())  # training is not decoded


def test_a_causal_dropless_evaluation_passes_all_four_and_soft_moe_mixes_the_future_of_its_own_sequence_in():
    for name in routers.POLICIES:
        row = row_of()[name, None, "position", False]
        if routers.POLICIES[name].FACTS.causal_in_evaluation:
            assert (row.future, row.prefix, row.batch, row.cached) == (0, 0, 0, 0), name
        else:
            assert min(row.future, row.prefix, row.cached) > 0, name
    for training, cached in ((True, None), (False, 1)):
        row = row_of()["soft", None, "position", training]
        assert (row.future, row.prefix, row.batch, row.cached, row.declared) == (1, 1, 0, cached, False)


def test_orders_let_the_future_in_unless_they_are_by_position():
    """Hash layers see only the last token's number; by rank its first choice comes before earlier second ones."""
    for name, ahead, evaluation in (("position", False, False), ("rank", True, True), ("priority", True, True),
                                    ("random", True, False)):
        assert (softmax(name, training=True).future > 0, softmax(name).future > 0) == (ahead, evaluation)
        assert (softmax(name, training=True).declared, softmax(name).declared) == (not ahead, not evaluation)
    for training in (True, False):
        rank, position = (row_of()["hash", 0.75, order, training] for order in ("rank", "position"))
        assert rank.future > position.future == 0


def test_with_a_capacity_a_prefix_has_less_room_and_a_token_alone_has_enough():
    """8 tokens of 16 have half the slots, so different tokens are dropped; one by one none is.  The order of the batch
    decides who is dropped by position, but not by priority.  In evaluation the random order is by position.
    """
    position = softmax("position")
    assert position.prefix > 0.5 and position.cached > 0.5 and position.batch > 0.5
    assert softmax("priority").batch == 0
    assert softmax("random") == replace(position, drop_order="random")


def test_chance_is_noticed_in_training_and_there_is_none_in_evaluation():
    chance = {name for name in routers.POLICIES if row_of()[name, None, "position", True].prefix is None}
    assert chance == {"switch", "noisy_topk", "gshard", "st_moe", "random"}
    assert all(row.prefix is not None and row.batch is not None for row in study() if not row.training)


@pytest.mark.parametrize(("name", "flag"), [("expert_choice", "causal"),
                                            ("softmax_topk", "causal_in_evaluation")])
def test_a_false_declaration_is_found(monkeypatch, name, flag):
    """One that promises too much, and one that promises too little."""
    facts = routers.POLICIES[name].FACTS
    monkeypatch.setattr(routers.POLICIES[name], "FACTS", facts._replace(**{flag: not getattr(facts, flag)}))
    rows = causality.study(12, (name,), factors=(None,))
    assert not all(row.as_declared for row in rows)
    assert f"1 of 1 settings are NOT as declared: {name} (dropless)" in causality.report(rows)


def test_the_report_leads_with_which_routers_and_orders_look_ahead(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    answer, table, _ = causality.report(study(), detail=True).split("\n\n")
    assert " ".join(answer.split()) == (
        "Routers that look into the future: expert_choice, soft; in training only: sinkhorn, base. "
        "Drop orders that do, when experts are full: rank, priority; in training only: random. "
        "All 61 settings are as declared.")
    lines = [line.split() for line in table.splitlines()]
    assert lines[3] == ["softmax_topk", "dropless", *"-------"] and len(lines) == 3 + 61
    assert ["random", "dropless", "-", "?", "?", *"----"] in lines
    assert ["soft", "dropless", "100%", "100%", "-", "100%", "100%", "-", "100%"] in lines
    assert ["softmax_topk", "priority"] in [line[:2] for line in lines]
    assert causality.report(study()).startswith(f"{answer}\n\nA setting looks into the future if ")
    assert "look into the future: none." in causality.report(causality.study(2, ("softmax_topk",), factors=(None,)))
