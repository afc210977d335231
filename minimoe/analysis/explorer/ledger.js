// Why a token went where it went: the numbers of every expert, and the result.
"use strict";

const MOST_ROWS = 12;

/** How the router chooses, in a sentence. */
function story() {
  const { rule } = data, K = state.topK, T = text().characters.length;
  const room = capacity(K * T, T, data.n_experts, "1");
  const winners = K === 1 ? "the token goes to the highest" : `the token goes to the ${K} highest`;
  const groups = rule.top_groups === rule.n_groups ? ""
    : `, among those of its best ${rule.top_groups} of ${rule.n_groups} groups of experts`;
  const number = rule.chosen_by ? `number (${rule.chosen_by})` : "score";
  return {
    best: `The router gives each of the ${data.n_experts} experts a ${number}; ${winners}${groups}.`,
    turn: `Nothing is compared: each token gets the next ${K === 1 ? "expert" : `${K} experts`}, round-robin.`,
    experts: `Here the experts choose: each takes the ${count(room, "token")} with the highest probability for it.`,
    recorded: "This page does not know how the router chooses, and shows its recorded choices.",
  }[rule.choice];
}

/** The result, in a sentence. */
function outcome(assignments) {
  const kept = assignments.filter((assignment) => assignment.kept);
  if (kept.length) return "";
  const others = data.shared ? "only the shared experts process it" : "the layer leaves it unchanged";
  return assignments.length ? ` None of its experts had room: ${others}.` : ` No expert takes it: ${others}.`;
}

/** The result of one assignment. */
function fate({ slot, kept }) {
  const limit = routing().capacity;
  if (limit === null) return "kept: no limit";
  return kept ? `kept: place ${slot + 1} of ${limit}` : `dropped: place ${slot + 1}, room for ${limit}`;
}

/** Why an expert was not chosen for the token, where its number alone does not explain it. */
function passedOver(expert, numbers, layer) {
  const { rule } = data;
  if (rule.choice !== "best") return "";
  const round = ROUND[data.dtype] ?? ((number) => number);
  if (withinGroups(numbers, rule, state.topK, round)[expert] === -Infinity) {
    return "its group is not chosen";
  }
  const among = best(numbers, state.topK).indexOf(expert) > 0 && rule.least_share !== null;
  return among ? `not used: at most ${rule.least_share} of the gates` : "";
}

/** The columns: heading, and the cell in the row of an expert. */
function columns(layer, prob_E) {
  const fixed = (number, digits = 3) => number.toFixed(digits).replace("-", "\u2212"), token = state.token;
  return [
    ["expert", ({ expert }) => inColor(element("span", { className: "chip" }, `${expert}`), expert)],
    !data.rule.equal_gates && ["score", ({ expert }) => fixed(layer.logit_TE[token][expert], 2)],
    data.rule.chosen_by && [data.rule.chosen_by, ({ expert }) => fixed(layer.choice_TE[token][expert])],
    ["probability", ({ expert }) => {
      const filled = element("i");
      filled.style.width = `${100 * prob_E[expert]}%`;
      return element("span", {}, fixed(prob_E[expert]), element("span", { className: "meter" }, filled));
    }],
    ["gate", ({ assignment }) => (assignment ? fixed(assignment.gate) : "")],
    ["what happens", ({ assignment, reason }) => (assignment ? fate(assignment) : reason)],
  ].filter(Boolean);
}

/** All experts, those of the token first, then sorted by the numbers that the router compares. */
function ranking(layer, assignments, prob_E) {
  const numbers = data.rule.choice === "best" ? (layer.choice_TE ?? layer.logit_TE)[state.token] : prob_E;
  const own = new Map(assignments.map((assignment) => [assignment.expert, assignment]));
  const rank = (expert) => own.get(expert)?.rank ?? Infinity;
  return best(numbers, numbers.length)
    .sort((a, b) => (rank(a) === rank(b) ? 0 : rank(a) - rank(b)))
    .map((expert) => ({ expert, assignment: own.get(expert), reason: passedOver(expert, numbers, layer) }));
}

function drawLedger() {
  const layer = text().layers[state.layer], assignments = routing().ofToken[state.token];
  const prob_E = routing().prob_TE[state.token];
  byId("why-title").textContent = `Why ${character()} goes where it goes`;
  byId("story").textContent = `Token ${state.token + 1} of ${text().characters.length}, layer ${routing().layer}`
    + `${state.pinned ? ", pinned" : ""}. ${story()}${outcome(assignments)}`;
  const table = byId("why").querySelector("table"), shown = columns(layer, prob_E);
  const rows = ranking(layer, assignments, prob_E), most = Math.max(MOST_ROWS, assignments.length);
  table.tHead.rows[0].replaceChildren(...shown.map(([heading]) => element("th", { scope: "col" }, heading)));
  table.tBodies[0].replaceChildren(...rows.slice(0, most).map((row, i) => element("tr",
    { className: `${row.assignment ? "" : "out"} ${i === assignments.length - 1 ? "cut" : ""}` },
    ...shown.map(([, cell]) => element("td", {}, cell(row))))));
  byId("gate-words").textContent = gateWords(rows.length - most);
}

/** Where the token goes, in the line at the bottom of narrow screens while the text is visible. */
function drawAnswer() {
  const experts = routing().ofToken[state.token].flatMap(({ expert, gate, kept }, i) => [i ? ", " : "expert ",
    element("span", {}, inColor(element("span", { className: "chip" }, `${expert}`), expert),
      ` (${gate.toFixed(2)}${kept ? "" : ", dropped"})`)]);
  const shown = `“${sign(text().characters[state.token])}”: `;
  byId("answer-words").replaceChildren(shown, ...(experts.length ? experts : ["no expert"]));
}

function gateWords(hidden) {
  const { rule } = data, K = state.topK;
  const more = hidden > 0 ? `${count(hidden, "more expert")} scored lower. ` : "";
  if (rule.equal_gates) return `${more}A gate is the weight of an expert's output: here always 1 / ${K}.`;
  const shares = rule.renormalize && K > 1 ? ", as a share of the sum over the chosen experts" : "";
  const times = rule.scale === 1 ? "" : `, times ${rule.scale}`;
  return `${more}A gate is the weight of an expert's output: ${rule.gate}${shares}${times}.`;
}
