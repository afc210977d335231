"""The router explorer in a real browser: what it shows is what the router did, by pointer, keyboard and touch."""

import re
from dataclasses import replace

import numpy as np
import pytest
from playwright.sync_api import expect

from minimoe import model
from minimoe.moe import capacity, routers
from minimoe.plots import palette
from tests.integration import explorer_pages
from tests.integration.explorer_pages import ODD, TEXT, TOKENS, decisions, make, routed


def recorded(routings):
    return [list(zip(*(getattr(r, f"{name}_A").tolist() for name in ("token", "rank", "expert", "slot", "kept")),
                     strict=True)) for r in routings]


def limit(page, factor):
    """Types a capacity factor."""
    page.get_by_label("Capacity factor, typed").fill(str(factor))


@pytest.mark.parametrize(("router", "dtype"), [*((router, np.float32) for router in routers.POLICIES),
                                               ("softmax_topk", np.float64)])
def test_the_page_routes_as_the_run_did_and_as_it_would_under_other_rules(visit, router, dtype):
    state = make(router, dtype, eval_capacity_factor=0.9, capacity_factor=2.0, drop_order="rank")
    routings, page = routed(state), visit(state)
    assert decisions(page) == recorded(routings)
    for factor, order in ((0.35, "priority"), (1.1, "position")):
        limit(page, factor)
        page.get_by_label("Order of the queue").select_option(order)
        again = [capacity.keep_forward(r, state.model_config.top_k, factor, order)[0] for r in routings]
        assert decisions(page) == recorded(again)
    page.get_by_label("no limit").check()
    assert all(kept for layer in decisions(page) for *_, kept in layer)
    page.get_by_role("button", name="As recorded").click()
    assert decisions(page) == recorded(routings)


def test_the_first_layer_with_more_experts_a_token_is_that_of_the_model_with_more(visit):
    """Scores of later layers would change; those of the first do not."""
    state = make()
    page, more = visit(state), replace(state.model_config, top_k=5)
    page.get_by_label("Experts per token").fill("5")
    [first, *_] = model.forward(state.params, state.tokenizer.encode(TEXT)[None], more)[1]
    assert decisions(page)[0] == recorded([first])[0]
    expect(page.locator("#k")).to_have_text("5")


def test_a_control_that_the_router_does_not_allow_is_disabled_with_the_reason(visit):
    page = visit(make("gshard"))
    expect(page.get_by_label("Experts per token")).to_be_disabled()
    expect(page.locator("#control-words")).to_contain_text("router gshard always uses 2")


def test_every_token_stands_with_its_experts_and_pointing_at_it_shows_its_numbers(visit):
    state = make(eval_capacity_factor=0.7)
    routing, page = routed(state)[0], visit(state)
    for token, button in enumerate(page.locator(TOKENS).all()):
        own = routing.token_A == token
        numbers = re.findall(r"\d", button.inner_text())
        assert numbers == [str(e) for e in routing.expert_A[own]]
        assert button.locator(".dropped").count() == (~routing.kept_A[own]).sum()
        shades = button.locator(".block, .choice").evaluate_all("all => all.map((n) => n.style.getPropertyValue("
                                                                "'--expert'))")
        assert shades == [palette.color(e) for e in routing.expert_A[own]]
    for token in (3, 21):
        page.locator(TOKENS).nth(token).hover()
        expect(page.locator("#story")).to_contain_text(f"Token {token + 1} of {len(TEXT)}, layer 0.")
        rows = [re.split(r"\s*\t\s*", row) for row in page.locator("#why tbody tr").all_inner_texts()]
        assert len(rows) == 8
        for (expert, score, prob, gate, words), a in zip(rows, np.flatnonzero(routing.token_A == token), strict=False):
            e, slot = routing.expert_A[a], routing.slot_A[a] + 1
            assert (expert, score.replace("−", "-")) == (str(e), f"{routing.logit_TE[token, e]:.2f}")
            assert (prob, gate) == (f"{routing.prob_TE[token, e]:.3f}", f"{routing.gate_A[a]:.3f}")
            assert words == (f"kept: place {slot} of {routing.capacity}" if routing.kept_A[a]
                             else f"dropped: place {slot}, room for {routing.capacity}")
        assert [float(row[2]) for row in rows] == sorted((float(row[2]) for row in rows), reverse=True)


def test_each_layer_has_bars_of_kept_dropped_and_the_capacity(visit):
    state = make(eval_capacity_factor=0.7)
    page = visit(state)
    for layer, routing in enumerate(routed(state)):
        page.get_by_role("radio", name=str(layer), exact=True).first.check()
        expect(page.locator("#story")).to_contain_text(f"layer {layer}.")
        most = max(*routing.count_E, routing.capacity)
        for e, row in enumerate(page.locator("#bars li").all()):
            kept, over = routing.kept_count_E[e], routing.count_E[e] - routing.kept_count_E[e]
            assert row.inner_text() == f"{e}\n{kept} kept" + (f", {over} dropped" if over else "")
            track = row.locator(".bar").bounding_box()["width"]
            for name, size in ((".in", kept), (".over", over)):
                boxes = [part.bounding_box()["width"] for part in row.locator(name).all()]
                np.testing.assert_allclose(sum(boxes), track * size / most, atol=2.1)
            assert row.locator("s").evaluate("n => parseFloat(n.style.left)") == pytest.approx(
                100 * routing.capacity / most)
        dropped, n = (~routing.kept_A).sum(), len(routing.kept_A)
        expect(page.locator("#summary[aria-live=polite]")).to_contain_text(
            f"{dropped} of {n} assignments dropped ({100 * dropped / n:.1f} %)")


def test_the_filter_fades_the_tokens_of_others_and_looks_like_the_choice_of_a_layer(visit):
    state = make()
    routing, page = routed(state)[0], visit(state)
    style = "n => [getComputedStyle(n).backgroundColor, getComputedStyle(n).color, getComputedStyle(n).boxShadow]"
    layer, other = [page.locator("#layers span").nth(i).evaluate(style) for i in (0, 1)]
    assert page.locator("#filter span").first.evaluate(style) == layer != other
    assert layer[2] == "none"  # a ring would look like the focus
    page.locator("#filter").get_by_label("5").check()
    assert page.locator("#filter span").first.evaluate(style) == other
    faded = [(" faded" in button.get_attribute("class")) for button in page.locator(TOKENS).all()]
    own = set(routing.token_A[routing.expert_A == 5])
    assert faded == [token not in own for token in range(len(TEXT))] and any(faded) and own
    page.locator("#filter").get_by_label("all").check()
    expect(page.locator(f"{TOKENS}.faded")).to_have_count(0)


def test_the_path_goes_through_the_experts_of_each_layer(visit):
    state = make(eval_capacity_factor=0.7)
    routings, page = routed(state), visit(state)
    page.locator(TOKENS).nth(20).click()
    experts = [[f"{e}" if kept else f"{e} (dropped)" for e, kept in zip(
        r.expert_A[r.token_A == 20], r.kept_A[r.token_A == 20], strict=True)] for r in routings]
    words = "; ".join(f"layer {layer}: {', '.join(row)}" for layer, row in enumerate(experts))
    expect(page.locator("#path-words")).to_contain_text(f"Experts of “a”, token 21: {words}.")
    lost = sum("dropped" in word for row in experts for word in row)
    drawn = {name: page.locator(f"#path svg {name}").count() for name in (".ring", ".first", ".lost", ".thread")}
    assert drawn == {".ring": 6, ".first": 3, ".lost": lost, ".thread": 2}
    first_LT = [r.expert_A[r.rank_A == 0] for r in routings]
    flows = sum(len(set(zip(a, b, strict=True))) for a, b in zip(first_LT, first_LT[1:], strict=False))
    assert page.locator("#path svg .band").count() == flows
    ring = page.locator("#path svg .ring.first").nth(1).bounding_box()
    node = page.locator("#path svg text", has_text=re.compile(f"^{first_LT[1][20]}$")).nth(1).bounding_box()
    assert ring["y"] < node["y"] and node["y"] + node["height"] < ring["y"] + ring["height"]


def focused(page):
    """What has the focus: a token's number, an id, the name of a group, the label of a button, or "out" of the page."""
    return page.evaluate("((node) => node === document.body ? 'out' : node.dataset.token || node.id || node.name "
                         "|| node.textContent)(document.activeElement)")


def test_the_keyboard_goes_everywhere_and_out_again(visit):
    """Each group of radio buttons is one stop, and so is the text."""
    page, stops = visit(make(eval_capacity_factor=1.0)), []
    while stops.count("layer") < 2 and "out" not in stops:
        page.keyboard.press("Tab")
        stops.append(focused(page))
        assert stops[-1] == "out" or page.evaluate("document.activeElement.matches(':focus-visible')")
        assert len(stops) < 20, stops
    assert stops[:-1] == ["layer", "expert", "0", "top-k", "order", "factor", "factor-typed", "no-limit", "As recorded"]


def test_arrows_go_from_token_to_token_and_what_enter_or_a_click_pins_stays_until_it_is_let_go(visit):
    page = visit(make())
    page.locator(TOKENS).first.focus()
    walk = {"ArrowRight": "1", "End": "21", "ArrowLeft": "20", "Home": "0", "ArrowDown": "8", "ArrowUp": "0"}
    for key, token in walk.items():
        page.keyboard.press(key)
        assert focused(page) == token
        expect(page.locator("#story")).to_contain_text(f"Token {int(token) + 1} of")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert page.locator(f"{TOKENS}[tabindex='0']").get_attribute("data-token") == token
    page.keyboard.press("ArrowLeft")
    assert focused(page) == "0"  # there is nothing before it
    page.keyboard.press("Enter")
    expect(page.locator(TOKENS).first).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(page.locator(TOKENS).first).to_have_attribute("aria-pressed", "false")
    page.locator(TOKENS).nth(4).click()
    page.locator(TOKENS).nth(9).hover()
    expect(page.locator("#story")).to_contain_text("Token 5 of 22, layer 0, pinned.")
    page.keyboard.press("Escape")
    page.locator(TOKENS).nth(10).hover()
    expect(page.locator("#story")).to_contain_text("Token 11 of 22, layer 0.")


@pytest.mark.parametrize("router", ["softmax_topk", "sigmoid_bias"])
def test_a_phone_has_no_sideways_scroll_and_a_tap_pins(visit, router):
    page = visit(make(router, eval_capacity_factor=0.5, max_sequence=32), **explorer_pages.PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.locator(TOKENS).nth(6).tap()
    expect(page.locator("#story")).to_contain_text("Token 7 of 22, layer 0, pinned.")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert all(button.bounding_box()["width"] >= 24 for button in page.locator(TOKENS).all())  # WCAG 2.2, 2.5.8
    why, load = page.locator("#why").bounding_box(), page.locator("#load").bounding_box()
    assert why["y"] < load["y"]  # what a tap tells comes next


CONTRAST = """selector => {
  const channels = (color) => color.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  const light = (color) => channels(color).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0.05);
  const node = document.querySelector(selector);
  const behind = (n) => (/^rgba.*, 0\\)$/.test(getComputedStyle(n).backgroundColor) ? behind(n.parentElement)
    : getComputedStyle(n).backgroundColor);
  const [a, b] = [light(getComputedStyle(node).color), light(behind(node))];
  return { ratio: Math.max(a, b) / Math.min(a, b), dark: b < 0.2 };
}"""


@pytest.mark.parametrize(("scheme", "motion"), [("light", "reduce"), ("dark", "no-preference")])
def test_both_color_schemes_can_be_read_and_what_moves_can_be_stopped(visit, scheme, motion):
    page = visit(make(eval_capacity_factor=0.7), color_scheme=scheme, reduced_motion=motion)
    seconds = page.locator(TOKENS).first.evaluate("n => getComputedStyle(n).transitionDuration")
    assert seconds == ("0s" if motion == "reduce" else "0.15s")
    for selector in ("h1", "#about", "#story", "#keys", "#why th", "tr.out td", "#summary", "#gate-words", "#bars li"):
        seen = page.evaluate(CONTRAST, selector)
        assert seen["ratio"] >= 4.5 and seen["dark"] == (scheme == "dark"), selector  # WCAG 2.2, 1.4.3
    assert all(page.evaluate(CONTRAST, f"#filter label:nth-of-type({e + 2}) span")["ratio"] >= 4.5 for e in range(8))


def test_odd_characters_are_shown_as_text(visit):
    page = visit(make(), [ODD])
    assert page.evaluate("data.texts[0].characters") == list(ODD)
    shown = "".join(re.sub(r"[\s\d]", "", words)[0] for words in page.locator(TOKENS).all_inner_texts())
    assert shown == ODD.replace("\t", "⇥").replace("\n", "↵")
    assert page.locator("#tokens .line").count() == 2
    page.locator(TOKENS).nth(ODD.index("\t")).hover()
    expect(page.locator("#why-title")).to_have_text("Why the tab goes where it goes")


def test_several_texts_are_chosen_between_each_a_group_of_its_own_by_a_control_that_has_a_name_as_all_have(visit):
    state = make(eval_capacity_factor=0.7)
    page = visit(state, [TEXT, "a mat"])
    assert decisions(page) == recorded(routed(state))
    page.get_by_label("Text", exact=True).select_option(index=1)
    assert decisions(page) == recorded(routed(state, "a mat"))
    expect(page.locator(TOKENS)).to_have_count(5)
    assert page.evaluate("[...document.querySelectorAll('input, select, button')].every((node) => node.labels?.length "
                         "|| node.ariaLabel || node.textContent.trim())")
