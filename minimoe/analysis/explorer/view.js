// The state of the page, what it is computed from, and the controls.
"use strict";

const data = JSON.parse(byId("data").textContent);
const state = { text: 0, layer: 0, token: 0, pinned: false, expert: null, ...data.settings };
let routings = [];

function byId(id) {
  return document.getElementById(id);
}

/** A new element.  A property with a hyphen is an attribute. */
function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}

/** The colors repeat from the ninth expert on, so the number is always shown as well. */
function color(expert) {
  return data.colors[expert % data.colors.length];
}

function inColor(node, expert) {
  node.style.setProperty("--expert", color(expert));
  node.style.setProperty("--on-expert", data.inks[expert % data.inks.length]);
  return node;
}

function count(number, thing) {
  return `${number} ${thing}${number === 1 ? "" : "s"}`;
}

const ODD = /[\p{C}\p{M}\p{Z}]/u;
const SIGNS = { "\n": "↵", "\t": "⇥", " ": "␣" };
const NAMES = { "\n": "the line break", "\t": "the tab", " ": "the space" };

/** A character as it can be seen. */
function sign(character) {
  return SIGNS[character] ?? (ODD.test(character) ? "□" : character);
}

/** A character in a sentence. */
function called(character) {
  const code = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  return NAMES[character] ?? (ODD.test(character) ? `U+${code}` : `“${character}”`);
}

const text = () => data.texts[state.text];
const routing = () => routings[state.layer];
const character = () => called(text().characters[state.token]);

/** Routes the text in every layer, and draws everything. */
function draw() {
  routings = text().layers.map((layer) => {
    const result = routeLayer(layer, data.rule, data.dtype, state);
    const ofToken = text().characters.map(() => []);
    for (const assignment of result.assignments) ofToken[assignment.token].push(assignment);
    return { ...result, ofToken, layer: layer.layer };
  });
  drawControls();
  drawTokens();
  drawLoad();
  drawToken();
}

/** Draws what depends on the current token. */
function drawToken() {
  markTokens();
  drawLedger();
  drawAnswer();
  drawPath();
}

/** Makes a token the current one, unless another one is pinned. */
function lookAt(token) {
  if (state.pinned || token === state.token) return;
  state.token = token;
  drawToken();
}

/** Pins a token, or releases the pinned one. */
function pin(token) {
  state.pinned = !(state.pinned && state.token === token);
  state.token = token;
  drawToken();
}

/** What a different order would change.  An expert keeps as many tokens as it has room for in any order. */
function effectOfOrder() {
  return routing().dropRate ? "The order changes which tokens are dropped, not how many."
    : "No token is dropped in this layer, in any order.";
}

function drawControls() {
  byId("top-k").value = state.topK;
  byId("k-words").textContent = data.rule.choice === "experts" ? "Experts per token, on average" : "Experts per token";
  byId("k").textContent = state.topK;
  byId("second-choice").hidden = !routing().assignments.some(({ rank }) => rank > 0);
  byId("order").value = state.order;
  const words = [
    state.factor !== null && `In the queues: ${data.orders[state.order].words}. ${effectOfOrder()}`,
    data.top_k.why && `Experts per token: ${data.top_k.why}.`,
    state.factor === null && "Without a limit the order of the queue does not matter.",
    data.drop_order === "random" && "In training this run's queues are random; evaluation is deterministic.",
  ];
  byId("control-words").textContent = words.filter(Boolean).join(" ");
}

function radio(name, value, label, checked, expert = null) {
  const span = element("span", { className: expert === null ? "" : "expert" }, label);
  if (expert !== null) inColor(span, expert);
  return element("label", {}, element("input", { type: "radio", name, value, checked }), span);
}

function setUpChoices() {
  byId("layers").append(...data.texts[0].layers.map(({ layer }, i) => radio("layer", i, `${layer}`, i === 0)));
  byId("layers").onchange = ({ target }) => { state.layer = Number(target.value); draw(); };
  byId("filter").append(radio("expert", "", "all", true),
    ...Array.from({ length: data.n_experts }, (_, expert) => radio("expert", expert, `${expert}`, false, expert)));
  byId("filter").onchange = ({ target }) => {
    state.expert = target.value === "" ? null : Number(target.value);
    drawToken();
  };
  const select = byId("which");
  select.append(...data.texts.map(({ name }, i) => element("option", { value: i }, `${i + 1}: ${name}`)));
  select.onchange = () => { Object.assign(state, { text: Number(select.value), token: 0, pinned: false }); draw(); };
  byId("texts").hidden = data.texts.length === 1;
}

function setUpRules() {
  Object.assign(byId("top-k"), { min: data.top_k.least, max: data.top_k.most,
    disabled: data.top_k.least === data.top_k.most });
  byId("top-k").oninput = ({ target }) => { state.topK = Number(target.value); draw(); };
  byId("order").append(...Object.entries(data.orders).map(([value, { short }]) => element(
    "option", { value }, `${value}: ${short}`)));
  byId("order").onchange = ({ target }) => { state.order = target.value; draw(); };
  byId("controls").onsubmit = (event) => event.preventDefault();
  byId("controls").onreset = (event) => {
    event.preventDefault();
    Object.assign(state, data.settings);
    limitTo(state.factor);
    showFactor();
  };
}

function setUp() {
  const shared = data.shared ? ` In addition it has ${count(data.shared, "shared expert")} for every token.` : "";
  byId("how-many").textContent = data.n_experts;
  byId("about").textContent = `${story()}${shared} In the code, this run (${data.run}) has router ${data.router}: `
    + `${data.words}; top_k, the number of experts per token, is ${data.settings.topK}. In evaluation, which is shown `
    + `here: ${data.evaluation}.`;
  setUpChoices();
  setUpRules();
  setUpTokens();
  limitTo(state.factor);
  setUpFactor();
}

setUp();
