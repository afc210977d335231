// The path of a token through the layers, in front of the paths of all tokens.
"use strict";

const NODE_HEIGHT = 20, HEADING = 24;

function shape(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** The expert of each token's first choice in each layer; undefined for a token that no expert takes. */
function firstChoices() {
  return routings.map(({ ofToken }) => ofToken.map(([first]) => first?.expert));
}

/** How many tokens go from an expert of one layer to one of the next: {layer, from, to, size}. */
function bands(first_LT) {
  const sizes = new Map();
  for (let layer = 0; layer + 1 < first_LT.length; layer++) {
    first_LT[layer].forEach((from, token) => {
      const to = first_LT[layer + 1][token], key = `${layer} ${from} ${to}`;
      if (from === undefined || to === undefined || !hasExpert(token)) return;
      sizes.set(key, { layer, from, to, size: (sizes.get(key)?.size ?? 0) + 1 });
    });
  }
  return [...sizes.values()];
}

/** The positions of nodes in a picture of some width, and how wide they are; many layers and experts are closer. */
function places(width) {
  const nodeWidth = Math.min(30, 0.6 * width / routings.length), gap = data.n_experts > 16 ? 6 : 14;
  const step = (width - nodeWidth - 8) / Math.max(routings.length - 1, 1);
  return {
    nodeWidth, x: (layer) => nodeWidth / 2 + 4 + layer * step,
    y: (expert) => HEADING + NODE_HEIGHT / 2 + expert * (NODE_HEIGHT + gap),
  };
}

function curve({ x, y, nodeWidth }, layer, from, to) {
  const left = x(layer) + nodeWidth / 2, right = x(layer + 1) - nodeWidth / 2, middle = (left + right) / 2;
  return `M${left} ${y(from)} C${middle} ${y(from)} ${middle} ${y(to)} ${right} ${y(to)}`;
}

/** A rectangle around the node of an expert, with this much room around it. */
function box({ x, y, nodeWidth }, layer, expert, room) {
  const width = nodeWidth + 2 * room, height = NODE_HEIGHT + 2 * room;
  return { x: x(layer) - width / 2, y: y(expert) - height / 2, width, height, rx: 4 + room / 2 };
}

/** An expert; without its color, and struck out, where it dropped the token. */
function node(at, layer, expert) {
  const lost = routings[layer].ofToken[state.token].some((choice) => choice.expert === expert && !choice.kept);
  const ink = lost ? "var(--ink)" : data.inks[expert % data.inks.length];
  return [shape("rect", { ...box(at, layer, expert, 0), fill: lost ? "var(--panel)" : color(expert),
    stroke: "var(--edge)" }),
  shape("text", { x: at.x(layer), y: at.y(expert), fill: ink, class: lost ? "struck" : "" }, `${expert}`)];
}

/** The token's line from first choice to first choice: {d, by}.  It passes by an expert that dropped the token. */
function ownSteps(at) {
  const own = routings.map(({ ofToken }) => ofToken[state.token][0]);
  return own.slice(1).map((to, layer) => ({ layer, from: own[layer], to })).filter(({ from, to }) => from && to)
    .map(({ layer, from, to }) => ({ d: curve(at, layer, from.expert, to.expert), by: !(from.kept && to.kept) }));
}

function ring(at, layer, { expert, rank, kept }) {
  return shape("rect", { ...box(at, layer, expert, 3),
    class: `ring ${rank === 0 ? "first" : ""} ${kept ? "" : "lost"}` });
}

/** The token's experts, layer by layer, in words. */
function pathWords() {
  const layers = routings.map(({ layer, ofToken }) => `layer ${layer}: ${ofToken[state.token]
    .map(({ expert, kept }) => (kept ? `${expert}` : `${expert} (dropped)`)).join(", ") || "none"}`);
  const lost = routings.some(({ ofToken }) => ofToken[state.token].some(({ kept }) => !kept));
  return `Experts of ${character()}, token ${state.token + 1}: ${layers.join("; ")}.`
    + (lost ? " Dropped: the token stays on the residual stream, and that expert adds nothing to it." : "");
}

function drawPath() {
  const picture = byId("path").querySelector("svg"), width = Math.max(picture.clientWidth, 200);
  const at = places(width), height = at.y(data.n_experts - 1) + NODE_HEIGHT, first_LT = firstChoices();
  const flows = bands(first_LT), widest = Math.max(1, ...flows.map(({ size }) => size));
  const steps = ownSteps(at);
  const numbers = Array.from({ length: data.n_experts }, (_, expert) => expert);
  picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
  picture.setAttribute("aria-label", pathWords());
  picture.replaceChildren(
    ...flows.map(({ layer, from, to, size }) => shape("path", { class: "band", d: curve(at, layer, from, to),
      "stroke-width": Math.max(1, NODE_HEIGHT * size / widest),
      style: state.expert === null ? "" : `stroke: ${color(state.expert)}; opacity: .7` })),
    ...["halo", "thread"].flatMap((name) => steps.map(({ d, by }) => (
      shape("path", { class: `${name} ${by ? "by" : ""}`, d })))),
    ...routings.flatMap((_, layer) => numbers.flatMap((expert) => node(at, layer, expert))),
    ...routings.flatMap(({ ofToken }, layer) => ofToken[state.token].map((choice) => ring(at, layer, choice))),
    ...routings.map(({ layer }, i) => shape("text", { x: at.x(i), y: 8, class: "heading" }, `${layer}`)));
  byId("path-words").textContent = pathWords();
  byId("path-title").textContent = `The path of ${character()} through the layers`;
}

window.addEventListener("resize", () => drawPath());
