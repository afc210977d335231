"""The explorer's arithmetic is the library's: the same choices, slots, drops and gates from the same scores.

A case records a layer under one configuration, as on the page, and moves the controls; the library routes the same
tokens under the same changed configuration.
"""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from minimoe.analysis import explorer
from minimoe.analysis.explorer import recording, rules
from minimoe.config import ModelConfig
from minimoe.moe import capacity, routers
from minimoe.moe.facts import RECORDED
from minimoe.moe.routers import softmax_topk
from minimoe.moe.routing import Tokens

SCRIPT = (Path(explorer.__file__).parent / "arithmetic.js").read_text(encoding="utf-8")
FACTORS = (None, 0.1, 0.3, 0.75, 1, 1.1, 1.25, 0.30000000000000004, 1e-5, 2.2, 10**17, 1e300)
CASES = 30
"""Of each router."""


@pytest.fixture(scope="module")
def page(browser):
    """An empty page that knows the arithmetic alone."""
    page = browser.new_page()
    page.add_script_tag(content=SCRIPT)
    return page


def random_config(router, rng):
    """A configuration of the router with random experts, K, gates and drop order."""
    groups, n_experts = int(rng.choice([1, 2, 3])), 6 * int(rng.integers(1, 3))
    own = dict(n_groups=groups, top_groups=int(rng.integers(1, groups + 1)), gate_scale=float(rng.choice([1, 2.5])),
               group_score=str(rng.choice(["top2", "paper"]))) if router == "sigmoid_bias" else {}
    room = own.get("top_groups", 1) * n_experts // own.get("n_groups", 1)
    top_k = routers.ROUTERS[router].FACTS.top_k or int(rng.integers(1, room + 1))
    if "renormalize" in routers.ROUTERS[router].FACTS.options:
        own["renormalize"] = [None, False, True][rng.integers(3 if top_k > 1 else 2)]
    return ModelConfig(vocab_size=9, d_model=n_experts, n_heads=1, n_experts=n_experts, top_k=top_k, router=router,
                       **own)


def moved(config, rng):
    """The configuration after the page's controls were moved at random."""
    k = rules.choices_of_k(config)
    return replace(config, top_k=int(rng.integers(k["least"], k["most"] + 1)),
                   eval_capacity_factor=FACTORS[rng.integers(len(FACTORS))],
                   drop_order=str(rng.choice(list(capacity.ORDERS))))


def random_layer(config, rng):
    """Tokens, and weights that make their vectors the scores; sometimes in quarters, so that there are ties."""
    dtype, n_tokens = rng.choice([np.float32, np.float64]), int(rng.integers(1, 70))
    x_TE = rng.normal(0, 2, (n_tokens, config.n_experts)) - rng.choice([0, 0, 75, 500, -17, -40])
    x_TE = (np.round(x_TE * 4) / 4 if rng.random() < 0.4 else x_TE).astype(dtype)
    weights = {name: np.zeros(w.shape, dtype) for name, w in routers.POLICIES[config.router].weights(config, 1).items()}
    if "w_router_DE" in weights:
        weights["w_router_DE"] = np.eye(config.n_experts, dtype=dtype)
    if "bias_E" in weights:
        weights["bias_E"] = rng.choice([-0.25, 0, 0.5], config.n_experts).astype(dtype)
    return x_TE, weights, Tokens.of_batch(rng.integers(0, 9, (1, n_tokens)))


def evaluated(config, x_TE, weights, tokens):
    """The library's Routing in evaluation."""
    routing, _ = routers.POLICIES[config.router].forward(x_TE, weights, config, tokens)
    return capacity.keep_forward(routing, config.top_k, *capacity.rules(config, training=False))[0]


def case(router, rng):
    """The page's input, and the Routing that it should compute."""
    config = random_config(router, rng)
    after, layer = moved(config, rng), random_layer(config, rng)
    x_TE, weights, _ = layer
    data = recording.layer_data(evaluated(config, *layer), 0, weights, router)
    factor = after.eval_capacity_factor
    settings = {"topK": after.top_k, "factor": None if factor is None else str(factor), "order": after.drop_order}
    return [data, rules.as_data(config), str(x_TE.dtype), settings], evaluated(after, *layer)


def route(page, cases):
    """What routeLayer returns in each case.  One string goes to the page, and one comes back: far faster than parts."""
    return json.loads(page.evaluate("text => JSON.stringify(JSON.parse(text).map((given) => routeLayer(...given)))",
                                    json.dumps(cases)))


def assert_same(result, routing, top_k, exact=True):
    """What routeLayer returned, and a Routing.  The order in which NumPy adds 8 numbers or more is its own.

    exact: whether gates are the same to the last bit, as without exp, which every library rounds its own way.
    """
    rows = {name: [row[name] for row in result["assignments"]] for name in ("token", "rank", "expert", "slot", "kept")}
    assert rows == {name: getattr(routing, f"{name}_A").tolist() for name in rows}
    gate_A = np.array([row["gate"] for row in result["assignments"]])
    eps = np.finfo(routing.gate_A.dtype).eps
    np.testing.assert_allclose(gate_A, routing.gate_A.astype(float), rtol=0 if top_k < 8 and exact else 8 * eps)
    assert result["capacity"] == routing.capacity
    assert result["count_E"] == routing.count_E.tolist() and result["kept_E"] == routing.kept_count_E.tolist()
    np.testing.assert_allclose(result["load_E"], routing.load_E, rtol=1e-12)
    np.testing.assert_allclose(result["dropRate"], 1 - routing.kept_A.mean(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result["prob_TE"], routing.prob_TE, rtol=eps)


@pytest.mark.parametrize("router", [*routers.POLICIES, "recorded"])
def test_every_router_is_routed_as_the_library_does_and_choices_that_were_recorded_stand(page, monkeypatch, router):
    if router == "recorded":
        router = "softmax_topk"
        monkeypatch.setattr(softmax_topk, "FACTS", softmax_topk.FACTS._replace(explorer=RECORDED))
    rng = np.random.default_rng(list(router.encode()))
    given, routings = zip(*(case(router, rng) for _ in range(CASES)), strict=True)
    results = route(page, given)
    for (_, rule, _, settings), result, routing in zip(given, results, routings, strict=True):
        assert_same(result, routing, settings["topK"], exact=not (rule["shares"] and rule["renormalize"]))
    assert any(not routing.kept_A.all() for routing in routings)


def test_the_capacity_is_exact(page):
    rng = np.random.default_rng(0)
    sizes = [(int(k * t), int(t), int(e)) for k, t, e in zip(rng.integers(1, 9, 400), rng.integers(1, 999, 400),
                                                              rng.integers(1, 65, 400), strict=True)]
    factors = [str(f) for f in (*FACTORS[1:], *rng.random(200), *np.round(3 * rng.random(200), 2) + 0.01)][:400]
    cases = [[*size, factor] for size, factor in zip(sizes, factors, strict=True)]
    expected = [min(max(-(-Fraction(f) * a // e), 1), t) for a, t, e, f in cases]
    assert page.evaluate("cases => cases.map((given) => capacity(...given))", cases) == expected
    assert [capacity.capacity(a, t, e, float(f)) for a, t, e, f in cases] == expected
    assert page.evaluate("capacity(200, 200, 4, '1.1')") == 55  # 1.1 * 200 / 4 = 55.00000000000001 in floating point
    assert page.evaluate("capacity(200, 200, 4, null)") is None


def test_a_routing_by_hand(page):
    """Four tokens, two experts, K = 1, room for ceil(1 * 4 / 2) = 2: the third token of expert 1 has no room."""
    layer = {"logit_TE": [[0, 1], [2, 2], [0, 3], [1, 4]],
             "prob_TE": [[0.25, 0.75], [0.5, 0.5], [0.125, 0.875], [0, 1]]}
    rule = {"choice": "best", "equal_gates": False, "least_share": None, "renormalize": True, "scale": 1,
            "shares": None, "n_groups": 1, "top_groups": 1, "group_score": "top2"}
    settings = {"topK": 1, "factor": "1", "order": "position"}
    [result] = route(page, [[layer, rule, "float64", settings]])
    rows = [[row[name] for name in ("token", "expert", "gate", "slot", "kept")] for row in result["assignments"]]
    # the second token's scores are equal, so expert 0 has it; the gate of one expert is its probability as it is
    assert rows == [[0, 1, 0.75, 0, True], [1, 0, 0.5, 0, True], [2, 1, 0.875, 1, True], [3, 1, 1, 2, False]]
    assert (result["capacity"], result["kept_E"], result["dropRate"]) == (2, [1, 2], 0.25)
    settings["order"] = "priority"  # the surest first: tokens 3 and 2, so that token 0 is left out
    [result] = route(page, [[layer, rule, "float64", settings]])
    assert [row["slot"] for row in result["assignments"]] == [2, 0, 1, 0]
