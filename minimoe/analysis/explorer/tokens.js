// The text: one button per token, in the color of its first expert, with its other choices below.
"use strict";

/** An expert's number on its color; crossed out and empty where the expert had no room. */
function choiceOf({ expert, kept }, tag, className, ...before) {
  return inColor(element(tag, { className: kept ? className : `${className} dropped` }, ...before,
    tag === "span" && before.length ? element("b", {}, `${expert}`) : `${expert}`), expert);
}

function tokenButton(token) {
  const [first, ...others] = routing().ofToken[token], shown = sign(text().characters[token]);
  const block = first?.rank === 0 ? choiceOf(first, "span", "block", shown)
    : element("span", { className: "block empty" }, shown, element("b", {}, "–"));
  return element("button", { type: "button", className: "token", "data-token": token, "aria-label": spoken(token),
    tabIndex: token === state.token ? 0 : -1 }, block, ...others.map((other) => choiceOf(other, "span", "choice")));
}

/** A token and its experts in words, for screen readers. */
function spoken(token) {
  const experts = routing().ofToken[token].map(({ expert, kept }) => `expert ${expert}${kept ? "" : ", dropped"}`);
  return `${called(text().characters[token])}, token ${token + 1}: ${experts.join("; ") || "no expert"}`;
}

function drawTokens() {
  const lines = [[]];
  text().characters.forEach((character, token) => {
    lines.at(-1).push(tokenButton(token));
    if (character === "\n") lines.push([]);
  });
  byId("tokens").replaceChildren(...lines.filter((line) => line.length)
    .map((line) => element("div", { className: "line" }, ...line)));
}

function buttons() {
  return [...byId("tokens").querySelectorAll("button")];
}

function hasExpert(token) {
  return state.expert === null || routing().ofToken[token].some(({ expert }) => expert === state.expert);
}

function markTokens() {
  buttons().forEach((button, token) => {
    const isIt = token === state.token;
    button.classList.toggle("shown", isIt);
    button.classList.toggle("pinned", isIt && state.pinned);
    button.classList.toggle("faded", !hasExpert(token));
    button.setAttribute("aria-pressed", isIt && state.pinned);
  });
}

/** The token to which a key moves from this one; undefined for other keys, and at the ends of the text. */
function neighbor(key, from) {
  const all = buttons(), { left, top } = all[from].getBoundingClientRect();
  const steps = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: all.length - 1 };
  if (key in steps) return all[steps[key]];
  const way = { ArrowUp: -1, ArrowDown: 1 }[key];
  const boxes = all.map((button) => ({ button, box: button.getBoundingClientRect() }))
    .filter(({ box }) => way * (box.top - top) > 1);
  const distance = ({ box }) => 1000 * Math.abs(box.top - top) + Math.abs(box.left - left);
  return boxes.sort((a, b) => distance(a) - distance(b))[0]?.button;
}

function setUpTokens() {
  const tokens = byId("tokens");
  const tokenOf = ({ target }) => Number(target.closest("button")?.dataset.token ?? NaN);
  const ifToken = (act) => (event) => Number.isNaN(tokenOf(event)) || act(tokenOf(event), event);
  tokens.addEventListener("pointerover", ifToken((token) => lookAt(token)));
  tokens.addEventListener("click", ifToken((token) => pin(token)));
  tokens.addEventListener("focusin", ifToken((token) => {
    buttons().forEach((button, i) => { button.tabIndex = i === token ? 0 : -1; });
    lookAt(token);
  }));
  tokens.addEventListener("keydown", ifToken((token, event) => {
    const next = neighbor(event.key, token);
    if (next === undefined) return;
    event.preventDefault();
    next.focus();
  }));
  document.addEventListener("keydown", ({ key }) => { if (key === "Escape" && state.pinned) pin(state.token); });
}
