"""The router explorer for newcomers: a tap is answered, and a control explains what it does or refuses."""

import re

import numpy as np
import pytest
from playwright.sync_api import expect

from tests.integration import explorer_pages
from tests.integration.explorer_pages import TEXT, TOKENS, decisions, make, routed


def typed(page):
    return page.get_by_label("Capacity factor, typed")


def answer(routing, token):
    """The line at the bottom of a phone's screen about a token."""
    own = np.flatnonzero(routing.token_A == token)
    experts = [f"{expert} ({gate:.2f}{'' if kept else ', dropped'})" for expert, gate, kept in zip(
        routing.expert_A[own], routing.gate_A[own], routing.kept_A[own], strict=True)]
    return f"“{TEXT[token].translate({32: '␣', 10: '↵'})}”: expert {', '.join(experts)}"


def is_in_sight(page, selector):
    """Whether an element is in the viewport, and nothing lies on its middle."""
    return page.evaluate("""selector => {
      const node = document.querySelector(selector), { left, right, top, bottom } = node.getBoundingClientRect();
      return top >= 0 && bottom <= innerHeight
        && node.contains(document.elementFromPoint((left + right) / 2, (top + bottom) / 2));
    }""", selector)


def test_on_a_phone_a_tap_is_answered_whole_where_it_is_seen(visit):
    state = make(eval_capacity_factor=0.3)
    routing, page = routed(state)[0], visit(state, **explorer_pages.PHONE)
    for token in range(len(TEXT)):
        page.locator(TOKENS).nth(token).tap()
        expect(page.locator("#answer-words")).to_have_text(answer(routing, token))
        assert page.locator("#answer-words").evaluate("n => n.scrollHeight <= n.clientHeight")
        assert is_in_sight(page, "#answer") and is_in_sight(page, f"{TOKENS}[data-token='{token}']")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.get_by_role("link", name="why?").tap()
    assert is_in_sight(page, "#why-title")


def test_the_answer_on_a_phone_has_two_lines_at_most_and_covers_nothing_for_good(visit):
    """Whatever is in the panel of the text can be scrolled to where the line does not lie on it."""
    page = visit(make(top_k=8, eval_capacity_factor=0.3), **explorer_pages.PHONE)
    assert page.locator("#answer").bounding_box()["height"] < 64
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for selector in ("#text-title", f"{TOKENS}:last-child", "#legend", "#keys"):
        page.locator(selector).last.evaluate("node => node.scrollIntoView({ block: 'center' })")
        line, box = page.locator("#answer").bounding_box(), page.locator(selector).last.bounding_box()
        assert box["y"] + box["height"] <= line["y"] or line["y"] + line["height"] <= box["y"], selector


def test_plain_words_come_before_names_of_the_code_and_what_is_of_no_use_is_hidden(visit):
    """The line of a phone on a wide screen, the choice between texts if there is one, second choices if K is 1."""
    page = visit(make())
    about = page.locator("#about").inner_text()
    assert about.index("the token goes to the 2 highest") < about.index("softmax_topk")
    assert re.search(r"top_k, the number of experts per token, is 2\b", about)
    for selector in ("#answer", "#texts"):
        expect(page.locator(selector)).to_be_hidden()
    second = page.locator("#legend li", has_text="second choice")
    expect(second).to_be_visible()
    page.get_by_label("Experts per token").fill("1")
    expect(second).to_be_hidden()


def test_without_a_limit_no_factor_is_shown_and_the_controls_still_work(visit):
    state = make()
    page = visit(state)
    slider, field, tick = page.locator("#factor"), typed(page), page.get_by_label("no limit")
    expect(field).to_have_value("")
    assert slider.get_attribute("aria-valuetext") == "no limit" and "off" in slider.get_attribute("class")
    field.press_sequentially("0.5")
    expect(tick).not_to_be_checked()
    expect(slider).to_have_value("0.5")
    expect(slider).not_to_have_class("off")
    assert slider.get_attribute("aria-valuetext") is None
    tick.check()
    expect(field).to_have_value("")
    tick.uncheck()
    expect(field).to_have_value("0.5")  # what it was before
    tick.check()
    slider.press("ArrowRight")
    expect(tick).not_to_be_checked()
    expect(field).to_have_value("0.55")


@pytest.mark.parametrize(("factor", "wrong"), [(0.9, "0"), (0.9, "-1"), (0.9, ""), (None, "0"), (None, "-1")])
def test_what_is_no_capacity_factor_changes_nothing_and_is_refused_aloud(visit, factor, wrong):
    page = visit(make(eval_capacity_factor=factor))
    before, field, words = decisions(page), typed(page), page.locator("#factor-wrong[aria-live=polite]")
    expect(words).to_be_empty()
    field.fill(wrong)
    expect(words).to_have_text(f"must be above 0; still {factor or 'no limit'}")
    expect(field).to_have_attribute("aria-invalid", "true")
    assert decisions(page) == before
    field.fill("0.4")
    expect(words).to_be_empty()
    expect(field).to_have_attribute("aria-invalid", "false")
    assert decisions(page) != before


@pytest.mark.parametrize("way_out", ["As recorded", "no limit"])
def test_a_refusal_goes_when_another_control_sets_the_factor(visit, way_out):
    page = visit(make(eval_capacity_factor=0.9))
    typed(page).fill("0")
    page.get_by_text(way_out).click()
    expect(page.locator("#factor-wrong")).to_be_empty()
    expect(typed(page)).to_have_value("0.9" if way_out == "As recorded" else "")


def test_who_queues_first_differs_in_words_and_in_who_is_dropped_but_not_in_how_many(visit):
    page = visit(make(eval_capacity_factor=0.7))
    control, dropped = page.get_by_label("Order of the queue"), []
    assert control.locator("option").all_inner_texts() == [
        "position: earlier tokens first", "rank: first choices before second ones",
        "priority: first choices, most confident first"]
    for order in ("position", "rank", "priority"):
        control.select_option(order)
        expect(page.locator("#control-words")).to_contain_text("The order changes which tokens are dropped")
        dropped.append({(token, rank) for token, rank, *_, kept in decisions(page)[0] if not kept})
    assert len({len(who) for who in dropped}) == 1 and len(set(map(frozenset, dropped))) == 3
    typed(page).fill("8")
    expect(page.locator("#control-words")).to_contain_text("No token is dropped in this layer, in any order.")


def test_the_path_is_dashed_where_an_expert_dropped_the_token(visit):
    state = make(eval_capacity_factor=0.3)
    routings, page = routed(state), visit(state)
    kept_LT = np.array([r.kept_A[r.rank_A == 0] for r in routings])
    seen = set()
    for token in range(len(TEXT)):
        page.locator(TOKENS).nth(token).hover()
        expect(page.locator("#path-words")).to_contain_text(f"token {token + 1}:")
        lost = int(sum((~r.kept_A[r.token_A == token]).sum() for r in routings))
        by = [not (a and b) for a, b in zip(kept_LT[:, token], kept_LT[1:, token], strict=False)]
        dashes = page.locator("#path svg .thread").evaluate_all(
            "all => all.map((n) => getComputedStyle(n).strokeDasharray !== 'none')")
        assert dashes == by
        assert page.locator("#path svg .struck").count() == lost
        said = "the token stays on the residual stream" in page.locator("#path-words").inner_text()
        assert said == bool(lost)
        seen |= set(by)
    assert seen == {True, False}
