// The load of each expert: one bar per expert, kept and dropped, and the line of the capacity.
"use strict";

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function bar(expert, most) {
  const { count_E, kept_E, capacity: limit } = routing(), kept = kept_E[expert], over = count_E[expert] - kept;
  const part = (size, className) => {
    const node = inColor(element("i", { className }), expert);
    node.style.width = `${100 * size / most}%`;
    return node;
  };
  const line = element("s");
  line.style.left = `${100 * limit / most}%`;
  const track = element("div", { className: "bar", "aria-hidden": "true" },
    ...(kept ? [part(kept, "in")] : []), ...(over ? [part(over, "over")] : []), ...(limit === null ? [] : [line]));
  return element("li", {}, inColor(element("span", { className: "chip" }, `${expert}`), expert), track,
    element("span", {}, `${kept} kept${over ? `, ${over} dropped` : ""}`));
}

function drawLoad() {
  const { count_E, load_E, capacity: limit, dropRate, assignments } = routing();
  const most = Math.max(1, limit ?? 0, ...count_E), busiest = best(count_E, 1)[0];
  byId("bars").replaceChildren(...count_E.map((_, expert) => bar(expert, most)));
  byId("line-words").textContent = limit === null ? "There is no limit."
    : `The line: room for ${count(limit, "token")} in each expert.`;
  const dropped = assignments.filter(({ kept }) => !kept).length;
  byId("summary").textContent = `Layer ${routing().layer}: ${dropped} of ${count(assignments.length, "assignment")} `
    + `dropped (${percent(dropRate)}). Expert ${busiest} is the busiest: ${percent(load_E[busiest])} of them; an even `
    + `share is ${percent(1 / data.n_experts)}.`;
}
