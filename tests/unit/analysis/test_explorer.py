"""The explorer's page without a browser: what it holds is what the router did, escaped, in one file of bounded size."""

import json
import os
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
SMALL = dict(d_model=8, n_layers=2, n_heads=2, d_hidden=6, n_experts=4, top_k=2, max_sequence=32)
ODD = "a\n\t<b>&amp;</script><!--'\"\\ \u2028é😀"


def run(text="abc ", dtype=np.float32, **fields):
    """What the page needs of a TrainState, with random weights."""
    tokenizer = Tokenizer.of(text)
    facts = routers.ROUTERS[fields.get("router", "softmax_topk")].FACTS
    config = ModelConfig(vocab_size=len(tokenizer), **SMALL | dict(top_k=facts.top_k or 2) | fields)
    params = {name: array.astype(dtype) for name, array in gradcheck.random_params(config).items()}
    return SimpleNamespace(model_config=config, tokenizer=tokenizer, params=params)


def record(state, texts=("abcab",)):
    return recording.record(state.params, state.model_config, state.tokenizer, texts, "run")


def data_in(html):
    """The JSON that a page holds."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def routed(state, text):
    return model.forward(state.params, state.tokenizer.encode(text)[None], state.model_config)[1]


def test_numbers_by_hand():
    # the float32 nearest to 0.1 is 0.100000001490116..., but no shorter decimal than 0.1 tells it from its neighbours
    assert recording.numbers(np.array([[0.1, -2, 1e-30]], np.float32)) == [[0.1, -2.0, 1e-30]]
    assert recording.numbers(np.array([[0.1 + 0.2]])) == [[0.30000000000000004]]


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2))
def test_numbers_are_the_same_and_compare_the_same(values):
    array = np.array([values], np.float32)
    [written] = json.loads(json.dumps(recording.numbers(array)))
    assert np.array_equal(np.array(written, np.float32), array[0])
    assert np.array_equal(np.sign(np.diff(written)), np.sign(np.diff(array[0].astype(np.float64))))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_page_holds_what_the_router_said(dtype):
    state = run(dtype=dtype)
    data = data_in(explorer.page(state, ["abcab", "cb"]))
    assert data["dtype"] == np.dtype(dtype).name
    assert [text["characters"] for text in data["texts"]] == [list("abcab"), list("cb")]
    for text in data["texts"]:
        routings = routed(state, "".join(text["characters"]))
        assert [layer["layer"] for layer in text["layers"]] == [0, 1]
        for layer, routing in zip(text["layers"], routings, strict=True):
            assert np.array_equal(np.array(layer["logit_TE"], dtype), routing.logit_TE)
            assert np.array_equal(np.array(layer["prob_TE"], dtype), routing.prob_TE)


def test_the_page_has_words_for_every_order_that_leaves_nothing_to_chance():
    orders = record(run())["orders"]
    assert set(orders) == set(capacity.ORDERS) - {"random"}
    assert {name: order["words"] for name, order in orders.items()} == {n: capacity.ORDERS[n].summary for n in orders}
    assert len({order["short"] for order in orders.values()}) == 3


def test_layers_keep_their_numbers():
    [text] = record(run(n_layers=3, first_dense_layers=1, moe_every=2))["texts"]
    assert [layer["layer"] for layer in text["layers"]] == [2]


@pytest.mark.parametrize("router", routers.POLICIES)
def test_every_router_has_a_rule_whose_numbers_choose_as_it_does(router):
    rule = routers.POLICIES[router].FACTS.explorer
    assert rule.choice != "recorded"
    state = run(router=router)
    layers = record(state)["texts"][0]["layers"]
    for layer, routing in zip(layers, routed(state, "abcab"), strict=True):
        if rule.choice == "best":
            choice_TE = np.array(layer.get("choice_TE", layer["logit_TE"]))
            expert_TK = gates.top_k_experts(choice_TE, state.model_config.top_k)
            assert np.array_equal(expert_TK[routing.token_A, routing.rank_A], routing.expert_A)


def test_the_bias_chooses_and_the_score_alone_is_the_gate():
    state = run(router="sigmoid_bias")
    layer, routing = record(state)["texts"][0]["layers"][0], routed(state, "abcab")[0]
    score_TE = 1 / (1 + np.exp(-routing.logit_TE.astype(float)))
    np.testing.assert_allclose(layer["gate_TE"], score_TE, rtol=1e-6)
    np.testing.assert_allclose(np.array(layer["choice_TE"]) - layer["gate_TE"],
                               np.tile(state.params["layers.0.moe.bias_E"], (5, 1)), atol=1e-6)


def test_a_router_that_the_page_does_not_know_keeps_what_it_did(monkeypatch):
    monkeypatch.setattr(softmax_topk, "FACTS", softmax_topk.FACTS._replace(explorer=RECORDED))
    state = run()
    data, routing = record(state), routed(state, "abcab")[0]
    assert data["rule"]["choice"] == "recorded"
    assert (data["top_k"]["least"], data["top_k"]["most"]) == (2, 2) and "softmax_topk" in data["top_k"]["why"]
    recorded = data["texts"][0]["layers"][0]["recorded"]
    for name in ("token", "rank", "expert"):
        assert [row[name] for row in recorded] == getattr(routing, f"{name}_A").tolist()
    assert np.array_equal(np.array([row["gate"] for row in recorded], np.float32), routing.gate_A)


@pytest.mark.parametrize(("fields", "factor", "order"), [
    ({}, None, "position"), (dict(eval_capacity_factor=1.1, capacity_factor=2.0), "1.1", "position"),
    (dict(eval_capacity_factor=2, drop_order="rank"), "2", "rank"), (dict(drop_order="random"), None, "position")])
def test_the_page_starts_with_the_settings_of_evaluation(fields, factor, order):
    data = record(run(**fields))
    assert data["settings"] == {"topK": 2, "factor": factor, "order": order}
    assert list(data["orders"]) == ["position", "rank", "priority"]


@pytest.mark.parametrize(("fields", "least", "most", "words"), [
    ({}, 1, 4, ""), (dict(renormalize=True), 2, 4, "always be 1"), (dict(renormalize=False), 1, 4, ""),
    (dict(router="switch"), 1, 1, "always takes 1"), (dict(router="st_moe"), 2, 2, "always takes 2"),
    (dict(router="sigmoid_bias", n_groups=4, top_groups=3), 1, 3, "3 of 4 groups"), (dict(router="hash"), 1, 4, "")])
def test_k_moves_as_far_as_the_router_allows(fields, least, most, words):
    k = record(run(**fields))["top_k"]
    assert (k["least"], k["most"]) == (least, most)
    assert words in k["why"] and bool(words) == bool(k["why"])


@pytest.mark.parametrize("renormalize", [None, True, False])
def test_gates_are_renormalised_if_the_run_does_it(renormalize):
    assert record(run(renormalize=renormalize))["rule"]["renormalise"] == (renormalize is not False)


@pytest.mark.parametrize("router", ["switch", "base", "expert_choice", "hash"])
def test_routers_without_the_option_never_renormalise(router):
    assert not record(run(router=router))["rule"]["renormalise"]


def test_experts_have_the_colours_of_the_pictures():
    data = record(run())
    assert data["colours"] == list(palette.EXPERT_COLOURS)
    assert data["inks"] == [palette.ink(expert) for expert in range(8)]


def test_every_character_is_escaped_and_comes_back():
    html = explorer.page(run(ODD), [ODD], run="<runs> & \udc80 </script>")
    data = data_in(html)
    assert data["texts"][0]["characters"] == list(ODD)
    assert data["run"] == "<runs> & \udc80 </script>"
    assert html.count("</script>") == 2 and "<!--" not in html and "<b>&amp;" not in html
    assert html.encode()  # the lone half of a pair is ASCII in the JSON


def test_json_in_the_page_is_ascii_without_the_sign_that_opens_tags():
    assert explorer.escaped({"a": "</script>é"}) == r'{"a":"\u003c/script>\u00e9"}'


@pytest.mark.parametrize("words", ["the cat", "THE"])
def test_without_a_text_the_page_shows_one_that_the_model_knows(words):
    short, known = run(words), run(recording.DEFAULT_TEXT, max_sequence=40)
    texts = [data_in(explorer.page(state))["texts"] for state in (short, known)]
    assert ["".join(text["characters"]) for [text] in texts] == ["".join(sorted(set(words))),
                                                                 recording.DEFAULT_TEXT[:40]]


@pytest.mark.parametrize(("fields", "texts", "words"), [
    (dict(n_experts=1, top_k=1), ["a"], "run is a dense model (n_experts = 1)"),
    (dict(first_dense_layers=2), ["a"], "run has no layer that assigns tokens to experts"),
    (dict(router="soft"), ["a"], "run has no layer that assigns tokens to experts"),
    ({}, ["a", ""], "the text '' has 0 characters: the model takes 1 to 32"),
    ({}, ["a" * 33], "has 33 characters: the model takes 1 to 32"), ({}, ["ax"], "not seen in training: 'x'")])
def test_what_cannot_be_shown_is_refused(fields, texts, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        record(run(**fields), texts)


def test_numbers_that_are_not_finite_are_refused():
    state = run()
    state.params["layers.1.moe.w_router_DE"][:] = np.inf
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="layer 1: logit_TE of the router has numbers"):
        record(state)


def test_a_page_that_would_be_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(explorer, "MOST_BYTES", 60_000)
    assert len(explorer.page(run(), ["a"]).encode()) <= 60_000
    with pytest.raises(ValueError, match="the page of 20 texts would have .* more than 60,000: give fewer or shorter"):
        explorer.page(run(), ["abc" * 10] * 20)


def test_the_page_names_no_other_place():
    """But for the name of the SVG language, which nobody looks up."""
    html = explorer.page(run())
    assert set(re.findall(r"\w+://[\w./]+", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"<(?:link|script|img)[^>]+(?:src|href)=(?!\"data:)", html) and "url(" not in html
    assert "default-src 'none'" in html


@pytest.mark.parametrize("file", sorted(p.name for p in FOLDER.iterdir() if p.suffix in (".js", ".css", ".html")))
def test_the_files_of_the_page_are_short_and_cannot_end_it(file):
    lines = (FOLDER / file).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200 and max(map(len, lines)) <= 120
    assert file == "page.html" or "</" not in "".join(lines)


def test_every_script_is_in_the_page():
    assert {p.name for p in FOLDER.glob("*.js")} == set(explorer.SCRIPTS)


@pytest.mark.parametrize("name", ["page.htm", "page", "page.html.bak"])
def test_a_path_that_is_not_html_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: must end in .html"):
        explorer.save("page", tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_saving_makes_the_folder_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "new" / "page.html"
    explorer.save("é\n", path)
    assert list(path.parent.iterdir()) == [path] and path.read_bytes() == "é\n".encode()


def test_saving_that_fails_leaves_the_page_before_it(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space")

    path = tmp_path / "page.html"
    path.write_text("before")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ValueError, match=f"cannot write the page {path}: no space"):
        explorer.save("after", path)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
