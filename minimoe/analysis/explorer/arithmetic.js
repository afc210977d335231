// The arithmetic of routing in evaluation, the same as in `minimoe/moe`: which token goes to which expert, with what
// gate, to which slot, and whether there is room.  It does not depend on the page: numbers in, numbers out.
//
// Names end in their shape: T tokens, E experts, K choices per token, A assignments.
// A rule says how a router chooses, a layer holds its recorded numbers: see `rules.py` and `recording.py`.
"use strict";

/** Rounds to the type that the run computes in, so that sums and quotients are those of the library. */
const ROUND = { float16: Math.f16round ?? Math.fround, float32: Math.fround };

/** A decimal number as an exact fraction [numerator, denominator] of whole numbers: "1.1" is 11 / 10. */
function fraction(decimal) {
  const [, whole, part = "", power = "0"] = /^(\d*)\.?(\d*)(?:e([+-]?\d+))?$/i.exec(decimal);
  const shift = Number(power) - part.length;
  const digits = BigInt(whole + part);
  return shift < 0 ? [digits, 10n ** BigInt(-shift)] : [digits * 10n ** BigInt(shift), 1n];
}

/** Slots per expert, C = clip(ceil(factor * K * T / E), 1, T); null without a limit.  factor: a decimal in a string.
 *
 *  Floating point would make 56 of 1.1 * 200 / 4 = 55: hence fractions. */
function capacity(nAssignments, nTokens, nExperts, factor) {
  if (factor === null) return null;
  const [numerator, denominator] = fraction(factor);
  const above = numerator * BigInt(nAssignments), below = denominator * BigInt(nExperts);
  const exact = (above + below - 1n) / below;
  const most = BigInt(Math.max(nTokens, 1));
  return Number(exact < 1n ? 1n : exact > most ? most : exact);
}

/** The indices of the topK largest numbers, largest first; ties go to the larger entry of `ties`, then to the first. */
function best(numbers, topK, ties = null) {
  const places = Array.from(numbers.keys());
  places.sort((a, b) => numbers[b] - numbers[a] || (ties && ties[b] - ties[a]) || a - b);
  return places.slice(0, topK);
}

/** The scores, and -Infinity for the experts outside a token's best groups of experts.
 *
 *  A group's score is the sum of its best: of two, or of K / topGroups.  tie_E: as ties of `best`, or null. */
function withinGroups(score_E, tie_E, { n_groups, top_groups, group_score }, topK, round) {
  if (top_groups === n_groups) return score_E;
  const size = score_E.length / n_groups;
  const nBest = group_score === "top2" ? 2 : Math.max(Math.floor(topK / top_groups), 1);
  const groupScores = Array.from({ length: n_groups }, (_, group) => {
    const members = score_E.slice(group * size, (group + 1) * size).map(round);
    return best(members, nBest).reduce((sum, place) => round(sum + members[place]), 0);
  });
  const ties = tie_E && groupScores.map((_, group) => Math.max(...tie_E.slice(group * size, (group + 1) * size)));
  const allowed = new Set(best(groupScores, top_groups, ties));
  return score_E.map((score, expert) => (allowed.has(Math.floor(expert / size)) ? score : -Infinity));
}

/** The choices: a list of {token, rank, expert}, token by token.  One function for each kind of choice. */
const CHOICES = {
  /** Each token chooses the K experts with the highest numbers. */
  best(layer, rule, topK, round) {
    return (layer.choice_TE ?? layer.logit_TE).flatMap((score_E, token) => {
      const tie_E = layer.tie_TE?.[token] ?? null;
      return best(withinGroups(score_E, tie_E, rule, topK, round), topK, tie_E)
        .map((expert, rank) => ({ token, rank, expert }));
    });
  },

  /** Experts round-robin, by the token's position. */
  turn(layer, rule, topK) {
    return layer.prob_TE.flatMap((prob_E, token) => Array.from({ length: topK }, (_, rank) => (
      { token, rank, expert: (token * topK + rank) % prob_E.length })));
  },

  /** Each expert takes the K T / E tokens with the highest probability for it; a token's best one comes first. */
  experts(layer, rule, topK) {
    const { prob_TE } = layer, nTokens = prob_TE.length, nExperts = prob_TE[0].length;
    const room = capacity(topK * nTokens, nTokens, nExperts, "1");
    const experts_T = prob_TE.map(() => []);
    for (let expert = 0; expert < nExperts; expert++) {
      const prob_T = prob_TE.map((prob_E) => prob_E[expert]);
      for (const token of best(prob_T, room)) experts_T[token].push(expert);
    }
    return experts_T.flatMap((experts, token) => experts
      .sort((a, b) => prob_TE[token][b] - prob_TE[token][a] || a - b)
      .map((expert, rank) => ({ token, rank, expert })));
  },

  /** The recorded choices of the run, whatever K is. */
  recorded(layer) {
    return layer.recorded;
  },
};

/** The gates of one token's experts.  Returns the assignments that are used, each with its gate. */
function gated(chosen, layer, rule, topK, round) {
  if (rule.choice === "recorded") return chosen.map((assignment) => ({ ...assignment, gate: round(assignment.gate) }));
  if (rule.equal_gates) return chosen.map((assignment) => ({ ...assignment, gate: round(1 / topK) }));
  const shares = rule.renormalize && topK > 1;
  const score_E = (shares && layer[rule.shares] || layer.gate_TE || layer.prob_TE)[chosen[0].token];
  let scores = chosen.map(({ expert }) => round(score_E[expert]));
  if (shares && rule.shares) {
    const top = Math.max(...scores);
    scores = scores.map((log) => round(Math.exp(round(log - top))));
  }
  const sum = scores.reduce((total, score) => round(total + score), 0);
  const divisor = shares ? sum : 1;
  return chosen
    .map((assignment, i) => ({ ...assignment, gate: round(round(rule.scale) * round(scores[i] / divisor)) }))
    .filter((_, i) => i === 0 || rule.least_share === null || round(scores[i] / sum) > round(rule.least_share));
}

/** The order of the queue: comparisons of two assignments.  Random is for training; evaluation goes by position. */
const ORDERS = {
  position: (a, b) => a.token - b.token || a.rank - b.rank,
  rank: (a, b) => a.rank - b.rank || a.token - b.token,
  priority: (a, b, surest_T) => a.rank - b.rank || surest_T[b.token] - surest_T[a.token] || a.token - b.token,
  random: (a, b) => ORDERS.position(a, b),
};

/** How many assignments to the same expert queue before each one.  Returns slots in the order of the assignments. */
function queue(assignments, order, prob_TE) {
  const surest_T = prob_TE.map((prob_E) => Math.max(...prob_E));
  const turns = assignments.map((assignment, i) => ({ ...assignment, i }));
  turns.sort((a, b) => ORDERS[order](a, b, surest_T));
  const waiting = new Map(), slot_A = new Array(assignments.length);
  for (const { expert, i } of turns) {
    slot_A[i] = waiting.get(expert) ?? 0;
    waiting.set(expert, slot_A[i] + 1);
  }
  return slot_A;
}

/** The distribution over all experts; for a router that ignores the vectors, 1/K for each of a token's experts. */
function probabilities(assignments, layer, rule, topK, round) {
  if (!rule.equal_gates) return layer.prob_TE;
  const prob_TE = layer.prob_TE.map((prob_E) => prob_E.map(() => 0));
  for (const { token, expert } of assignments) prob_TE[token][expert] = round(1 / topK);
  return prob_TE;
}

/** The routing of one layer.
 *
 *  dtype: of the run.  topK: K.  factor: the capacity factor, a decimal in a string; null is no limit.
 *  order: a name of ORDERS.  Returns assignments, a list of {token, rank, expert, gate, slot, kept}; capacity, or null;
 *  prob_TE; for each expert count_E and kept_E, before and after capacity, and load_E, its share of the assignments;
 *  dropRate, the share of the assignments that found no room. */
function routeLayer(layer, rule, dtype, { topK, factor, order }) {
  const round = ROUND[dtype] ?? ((number) => number);
  const nTokens = layer.prob_TE.length, nExperts = layer.prob_TE[0].length;
  const chosen = CHOICES[rule.choice](layer, rule, topK, round);
  const sent = [...Map.groupBy(chosen, ({ token }) => token).values()]
    .flatMap((ofToken) => gated(ofToken, layer, rule, topK, round));
  const prob_TE = probabilities(chosen, layer, rule, topK, round);
  const limit = capacity(topK * nTokens, nTokens, nExperts, factor);
  const slot_A = queue(sent, limit === null ? "position" : order, prob_TE);
  const assignments = sent.map((assignment, i) => (
    { ...assignment, slot: slot_A[i], kept: limit === null || slot_A[i] < limit }));
  const counted = (list) => Array.from({ length: nExperts }, (_, expert) => (
    list.filter((assignment) => assignment.expert === expert).length));
  const count_E = counted(assignments), kept = assignments.filter((assignment) => assignment.kept);
  const nAssignments = assignments.length;
  return {
    assignments, capacity: limit, prob_TE, count_E, kept_E: counted(kept),
    load_E: count_E.map((count) => count / Math.max(nAssignments, 1)),
    dropRate: nAssignments ? 1 - kept.length / nAssignments : 0,
  };
}
