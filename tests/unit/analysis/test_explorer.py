"""The explorer's page without a browser: it contains what the router did, escaped, in one file of bounded size."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimoe import gradcheck, model
from minimoe.analysis import explorer
from minimoe.analysis.explorer import recording
from minimoe.config import ModelConfig
from minimoe.moe import capacity, gates, routers
from minimoe.moe.facts import RECORDED
from minimoe.moe.routers import softmax_topk
from minimoe.plots import palette
from minimoe.training.tokenizer import Tokenizer

FOLDER = Path(explorer.__file__).parent
SMALL = dict(d_model=8, n_layers=2, n_heads=2, d_hidden=6, n_experts=4, max_sequence=32)
ODD = "a\n\t<b>&amp;</script><!--'\"\\ \u2028é😀"


def run(text="abc ", dtype=np.float32, **fields):
    """What the page needs of a TrainState, with random weights."""
    tokenizer, facts = Tokenizer.of(text), routers.ROUTERS[fields.get("router", "softmax_topk")].FACTS
    config = ModelConfig(vocab_size=len(tokenizer), **SMALL | dict(top_k=facts.top_k or 2) | fields)
    params = {name: array.astype(dtype) for name, array in gradcheck.random_params(config).items()}
    return SimpleNamespace(model_config=config, tokenizer=tokenizer, params=params)


def record(state, texts=("abcab",)):
    return recording.record(state.params, state.model_config, state.tokenizer, texts, "run")


def data_in(html):
    """The JSON that a page holds."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def routed(state, text="abcab"):
    return model.forward(state.params, state.tokenizer.encode(text)[None], state.model_config)[1]


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2))
def test_numbers_are_the_same_and_compare_the_same(values):
    array = np.array([values], np.float32)
    [written] = json.loads(json.dumps(recording.numbers(array)))
    assert np.array_equal(np.array(written, np.float32), array[0])
    assert np.array_equal(np.sign(np.diff(written)), np.sign(np.diff(array[0].astype(np.float64))))
    # the float32 nearest to 0.1 is 0.100000001490116..., but no shorter decimal than 0.1 tells it from its neighbors
    assert recording.numbers(np.array([[0.1, -2]], np.float32)) == [[0.1, -2.0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_page_holds_what_the_router_did_in_each_layer(dtype):
    state = run(dtype=dtype, n_layers=4, first_dense_layers=1, moe_every=2)
    data = data_in(explorer.page(state, ["abcab", "cb"]))
    assert data["dtype"] == np.dtype(dtype).name and len(data["texts"]) == 2
    assert (data["colors"], data["inks"]) == (list(palette.EXPERT_COLORS), [palette.ink(e) for e in range(8)])
    assert {name: order["words"] for name, order in data["orders"].items()} == {
        name: order.summary for name, order in capacity.ORDERS.items() if name != "random"}  # nothing is left to chance
    for text, characters in zip(data["texts"], ("abcab", "cb"), strict=True):
        assert text["characters"] == list(characters)
        [layer], [routing] = text["layers"], routed(state, characters)
        assert layer["layer"] == 2
        assert np.array_equal(np.array(layer["logit_TE"], dtype), routing.logit_TE)
        assert np.array_equal(np.array(layer["prob_TE"], dtype), routing.prob_TE)


@pytest.mark.parametrize("router", routers.POLICIES)
def test_every_router_has_a_rule_whose_numbers_choose_as_it_does(router):
    rule, state = routers.POLICIES[router].FACTS.explorer, run(router=router)
    assert rule.choice != "recorded"
    for layer, routing in zip(record(state)["texts"][0]["layers"], routed(state), strict=True):
        if rule.choice == "best":
            choice_TE = np.array(layer.get("choice_TE", layer["logit_TE"]))
            expert_TK = gates.top_k_experts(choice_TE, state.model_config.top_k)
            assert np.array_equal(expert_TK[routing.token_A, routing.rank_A], routing.expert_A)


def test_the_bias_chooses_and_the_score_alone_is_the_gate():
    state = run(router="sigmoid_bias")
    layer, routing = record(state)["texts"][0]["layers"][0], routed(state)[0]
    score_TE = 1 / (1 + np.exp(-routing.logit_TE.astype(float)))
    np.testing.assert_allclose(layer["gate_TE"], score_TE, rtol=1e-6)
    np.testing.assert_allclose(np.array(layer["choice_TE"]) - layer["gate_TE"],
                               np.tile(state.params["layers.0.moe.bias_E"], (5, 1)), atol=1e-6)


def test_a_router_that_the_page_does_not_know_keeps_what_it_did(monkeypatch):
    monkeypatch.setattr(softmax_topk, "FACTS", softmax_topk.FACTS._replace(explorer=RECORDED))
    state = run()
    data, routing = record(state), routed(state)[0]
    assert data["rule"]["choice"] == "recorded"
    assert (data["top_k"]["least"], data["top_k"]["most"]) == (2, 2) and "softmax_topk" in data["top_k"]["why"]
    recorded = data["texts"][0]["layers"][0]["recorded"]
    for name in ("token", "rank", "expert"):
        assert [row[name] for row in recorded] == getattr(routing, f"{name}_A").tolist()
    assert np.array_equal(np.array([row["gate"] for row in recorded], np.float32), routing.gate_A)


@pytest.mark.parametrize(("fields", "factor", "order", "least", "most", "why"), [
    # fields of a run; where the page begins: capacity factor and order; how far K moves, and why
    ({}, None, "position", 1, 4, ""), (dict(renormalize=True), None, "position", 2, 4, "always be 1"),
    (dict(renormalize=False, eval_capacity_factor=1.1, capacity_factor=2.0), "1.1", "position", 1, 4, ""),
    (dict(router="switch", eval_capacity_factor=2, drop_order="rank"), "2", "rank", 1, 1, "always uses 1"),
    (dict(router="st_moe"), None, "position", 2, 2, "always uses 2"),
    (dict(router="hash", drop_order="random"), None, "position", 1, 4, ""),
    (dict(router="sigmoid_bias", n_groups=4, top_groups=3), None, "position", 1, 3, "3 of 4 groups")])
def test_the_page_starts_with_the_settings_of_evaluation(fields, factor, order, least, most, why):
    config, data = run(**fields).model_config, record(run(**fields))
    assert data["settings"] == {"topK": config.top_k, "factor": factor, "order": order}
    k = data["top_k"]
    assert (k["least"], k["most"]) == (least, most) and why in k["why"] and bool(why) == bool(k["why"])
    renormalizes = config.router not in ("switch", "hash") and config.renormalize is not False
    assert data["rule"]["renormalize"] == renormalizes


def test_every_character_is_escaped_and_comes_back():
    html = explorer.page(run(ODD), [ODD], run="<runs> & \udc80 </script>")
    data = data_in(html)
    assert data["texts"][0]["characters"] == list(ODD) and data["run"] == "<runs> & \udc80 </script>"
    assert html.count("</script>") == 2 and "<!--" not in html and "<b>&amp;" not in html
    assert html.encode()  # the lone half of a pair is ASCII in the JSON
    assert explorer.escaped({"a": "</script>é"}) == r'{"a":"\u003c/script>\u00e9"}'


def test_without_a_text_the_page_shows_one_that_the_model_knows():
    for state, text in ((run("the cat"), " aceht"), (run(recording.DEFAULT_TEXT, max_sequence=40),
                                                     recording.DEFAULT_TEXT[:40])):
        assert ["".join(shown["characters"]) for shown in data_in(explorer.page(state))["texts"]] == [text]
    texts = record(run(), ["a" * 30, "b" * 31])["texts"]
    assert [text["name"] for text in texts] == ["a" * 30, "b" * 29 + "…"]


@pytest.mark.parametrize(("fields", "texts", "words"), [
    (dict(n_experts=1, top_k=1), ["a"], "run is a dense model (n_experts = 1)"),
    (dict(router="soft"), ["a"], "run has no layer that assigns tokens to experts"),
    ({}, ["a", ""], "the text '' has 0 characters: the model reads 1 to 32"),
    ({}, ["a" * 33], "has 33 characters: the model reads 1 to 32"), ({}, ["ax"], "not seen in training: 'x'")])
def test_what_cannot_be_shown_is_refused(fields, texts, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        record(run(**fields), texts)


def test_numbers_that_are_not_finite_and_a_page_that_is_too_large_are_refused(monkeypatch):
    state = run()
    monkeypatch.setattr(explorer, "MOST_BYTES", len(explorer.page(state, ["a"]).encode()))
    explorer.page(state, ["a"])
    with pytest.raises(ValueError, match="the page of 2 texts would have .* more than .*: give fewer or shorter"):
        explorer.page(state, ["a", "b"])
    state.params["layers.1.moe.w_router_DE"][:, 2] = np.inf
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="layer 1: logit_TE of the router has numbers"):
        record(state)


def test_the_page_is_whole_names_no_other_place_and_is_written_as_it_is(tmp_path):
    """Except the name of the SVG namespace, which no browser looks up."""
    explorer.save("é\n", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == "é\n".encode()
    html = explorer.page(run())
    assert set(re.findall(r"\w+://[\w./]+", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"<(?:link|script|img)[^>]+(?:src|href)=(?!\"data:)", html) and "url(" not in html
    assert "default-src 'none'" in html and {p.name for p in FOLDER.glob("*.js")} == set(explorer.SCRIPTS)
    for path in (p for p in FOLDER.iterdir() if p.suffix in (".js", ".css", ".html")):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 200 and max(map(len, lines)) <= 120, path
        assert path.name == "page.html" or "</" not in "".join(lines)
