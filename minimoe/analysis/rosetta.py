"""The Rosetta table: one batch under the conventions of many systems.

The same words mean different numbers: whether K is in the capacity, which tokens queue first, what a gate is, and
whether an even load has a balance loss of 1, K or 1/E^2.  Each row is a system's convention in a few lines, run on the
batch.  Where paper and code differ, both have a row.  A coefficient tuned under one convention must not be used under
another.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minimoe import terminal
from minimoe.config import ModelConfig
from minimoe.moe import capacity, gates, losses, routing
from minimoe.moe.routers import softmax_topk
from minimoe.moe.routing import Tokens
from minimoe.nn import ops


@dataclass(frozen=True)
class Convention:
    """The convention of a system.

    source: where it is stated.   capacity: (T, E, K, factor) -> slots, None for dropless.   order: order of the queue,
    a name of `capacity.ORDERS`.   gates: (logit_TE, expert_TK) -> gate_TK.   balance: (logit_TE, expert_TK) -> loss.
    top_k: the only K that it supports.   coef: weight of the loss as published or by default; None if there is none.
    second: as in GShard: the share of the gates from which a second expert is always used; random below.
    """

    source: str
    capacity: Callable
    order: str
    gates: Callable
    balance: Callable
    top_k: int | None = None
    coef: float | None = None
    second: float | None = None


@dataclass(frozen=True)
class Entry:
    """A batch under a convention.

    slots: per expert; None is dropless.   dropped: number of assignments without room, if every choice is used.
    kept_TK: which choices have room.   gates: of the first token.   balance: the loss before its coefficient.
    even: the loss when all experts have the same load.
    """

    name: str
    slots: int | None
    dropped: int
    kept_TK: np.ndarray
    gates: np.ndarray
    balance: float
    even: float


def example():
    """The batch of the table: 48 tokens in eight rounds of six kinds, 8 experts.

    Each kind gives probability 0.5 to its first expert, 0.2 to its second and 0.05 to the six others; the choices of
    the kinds are (0, 1), (0, 2), (0, 1), (1, 2), (3, 0), (4, 5).  Returns logit_TE, the logarithms of these.
    """
    choice_TK = np.tile([(0, 1), (0, 2), (0, 1), (1, 2), (3, 0), (4, 5)], (8, 1))
    prob_TE = np.full((len(choice_TK), 8), 0.05)
    np.put_along_axis(prob_TE, choice_TK, [[0.5, 0.2]], axis=1)
    return np.log(prob_TE)


def read(logit_TE, top_k=2, factor=1.25):
    """A list of Entries: the batch under each convention.  factor: capacity factor, for those that have one."""
    return [_entry(name, convention, logit_TE, convention.top_k or top_k, factor)
            for name, convention in CONVENTIONS.items()]


def report(entries, detail=False):
    """The entries as text: how far they are apart, then one row per convention, and how to read it.

    detail: whether also with who queues first, the gates, and where each system says so.
    """
    rows = [("convention", "slots", "dropped", "balance", "if even", "weight", "in our\nunits")]
    more = [("convention", "queue", "gates of token 0", "second used")]
    for entry in entries:
        convention = CONVENTIONS[entry.name]
        used = "" if convention.second is None else f"{second_used(convention, entry.gates):.0%}"
        weights = ("", "") if convention.coef is None else (
            f"{convention.coef:g}", f"{convention.coef * entry.even:g}")
        rows.append((entry.name, entry.slots or "-", entry.dropped, f"{entry.balance:.4f}", f"{entry.even:.4f}",
                     *weights))
        more.append((entry.name, convention.order if entry.slots else "-", " ".join(f"{g:.3f}" for g in entry.gates),
                     used))
    sources = "\n".join(f"{entry.name}: {CONVENTIONS[entry.name].source}" for entry in entries)
    blocks = [terminal.table(rows)]
    if detail:
        blocks += [terminal.table(more, left=(0, 1, 2)), terminal.fill(sources, hanging="  ")]
    notes = NOTES + (MORE_NOTES if detail else "\nQueues, gates and sources: --detail")
    return "\n\n".join([terminal.fill(_answer(entries)), *blocks, terminal.fill(notes, hanging="  ")])


def _answer(entries):
    slots = [entry.slots for entry in entries if entry.slots]
    dropped, balance = ([getattr(entry, name) for entry in entries] for name in ("dropped", "balance"))
    return (f"One batch under {len(entries)} conventions: {min(slots)} to {max(slots)} slots per expert where there is "
            f"a limit, {min(dropped)} to {max(dropped)} dropped choices, a balance loss from {min(balance):.4f} to "
            f"{max(balance):.4f}. A weight that was tuned under one convention is a different weight under another; "
            "the last column converts it.")


NOTES = """\
The batch: 48 tokens, 8 experts, 2 choices per token (Switch: 1), capacity factor 1.25 where there is one.
slots: capacity of each expert; - is dropless.
dropped: choices without room.
balance: the loss before its weight.
if even: the same loss when all experts have the same load. With E experts, GShard's paper takes the mean of f P over \
them, 1/E^2 = 1/64; later systems take E times the sum, 1, or K = 2 where the shares f sum to K.
in our units: weight times 'if even', the weight at which our loss pushes equally hard for an even load of one layer. \
Ours is the mean over layers: where a system adds up the losses of its layers, multiply by their number."""

MORE_NOTES = """
queue: by position, the choices of a token together; by rank, all first choices before all second ones.
second used: probability that the second expert of token 0 is used at all in training, where that is random."""


def second_used(convention, gate_K):
    """Probability that a second expert is used, min(1, its share of the gates / `second`)."""
    return min(1.0, gate_K[1] / gate_K.sum() / convention.second)


def _entry(name, convention, logit_TE, top_k, factor):
    n_tokens, n_experts = logit_TE.shape
    expert_TK = gates.top_k_experts(logit_TE, top_k)
    slots = convention.capacity(n_tokens, n_experts, top_k, factor)
    slot_TK = capacity.queue(_plain(logit_TE, expert_TK), convention.order).reshape(expert_TK.shape)
    kept_TK = np.ones(expert_TK.shape, bool) if slots is None else slot_TK < slots
    turns_TK = (np.arange(n_experts)[:, None] + np.arange(top_k)) % n_experts  # each expert equally often, in each rank
    even = convention.balance(np.zeros((n_experts, n_experts)), turns_TK)
    return Entry(name, slots, int((~kept_TK).sum()), kept_TK, convention.gates(logit_TE, expert_TK)[0],
                 float(convention.balance(logit_TE, expert_TK)), float(even))


def _plain(logit_TE, expert_TK):
    """A Routing of these choices, without limit."""
    tokens = Tokens.anonymous(np.ones(len(logit_TE), bool))
    assigned = gates.assignments_by_token(expert_TK, tokens.mask_T)
    gate_A = np.ones(expert_TK.size)
    return routing.dropless_routing(*assigned, gate_A, logit_TE, ops.softmax_forward(logit_TE)[0], tokens)


def _dropless(T, E, K, factor):
    return None


def _raw(logit_TE, expert_TK):
    return np.take_along_axis(ops.softmax_forward(logit_TE)[0], expert_TK, axis=1)


def _shares(logit_TE, expert_TK):
    gate_TK = _raw(logit_TE, expert_TK)
    return gate_TK / gate_TK.sum(axis=1, keepdims=True)


def _sigmoid_shares(logit_TE, expert_TK):
    score_TK = np.take_along_axis(ops.sigmoid_forward(logit_TE)[0], expert_TK, axis=1)
    return 2.5 * score_TK / score_TK.sum(axis=1, keepdims=True)


def _load(expert_TK, n_experts):
    """Choices of each expert over the number of tokens: sums to K."""
    return np.bincount(expert_TK.ravel(), minlength=n_experts) / len(expert_TK)


def _first_times_mean(logit_TE, expert_TK):
    """sum_e f_e P_e, f the share of the first choices."""
    return _load(expert_TK[:, :1], logit_TE.shape[1]) @ ops.softmax_forward(logit_TE)[0].mean(axis=0)


def _all_times_mean(logit_TE, expert_TK):
    """sum_e f_e P_e, f the number of choices per token, which sums to K."""
    return _load(expert_TK, logit_TE.shape[1]) @ ops.softmax_forward(logit_TE)[0].mean(axis=0)


def _e_first(logit_TE, expert_TK):
    return logit_TE.shape[1] * _first_times_mean(logit_TE, expert_TK)


def _e_all(logit_TE, expert_TK):
    return logit_TE.shape[1] * _all_times_mean(logit_TE, expert_TK)


def _e_all_over_k(logit_TE, expert_TK):
    return _e_all(logit_TE, expert_TK) / expert_TK.shape[1]


def _sigmoid_e_all_over_k(logit_TE, expert_TK):
    score_TE, _ = ops.sigmoid_forward(logit_TE)
    mean_E = (score_TE / score_TE.sum(axis=1, keepdims=True)).mean(axis=0)
    return logit_TE.shape[1] / expert_TK.shape[1] * _load(expert_TK, len(mean_E)) @ mean_E


def _our_capacity(T, E, K, factor):
    return capacity.capacity(K * T, T, E, factor)


def _our_routing(logit_TE, expert_TK):
    """The decisions of our own router: the logits are its input, and its weights are the identity."""
    E, K = logit_TE.shape[1], expert_TK.shape[1]
    config = ModelConfig(d_model=2 * E, n_heads=1, n_experts=E, top_k=K)
    tokens = Tokens.anonymous(np.ones(len(logit_TE), bool))
    weights, replay = {"w_router_DE": np.eye(E)}, _plain(logit_TE, expert_TK)
    return softmax_topk.forward(logit_TE, weights, config, tokens, replay=replay)[0]


def _our_gates(logit_TE, expert_TK):
    return _our_routing(logit_TE, expert_TK).gate_A.reshape(expert_TK.shape)


def _our_balance(logit_TE, expert_TK):
    return losses.balance_forward(_our_routing(logit_TE, expert_TK))[0]


def _up_to(multiple, slots):
    return -(-slots // multiple) * multiple


CONVENTIONS = {
    "GShard (paper)": Convention(
        "arXiv:2006.16668, algorithm 1", lambda T, E, K, factor: K * T // E, "rank", _shares,
        lambda logit_TE, expert_TK: _first_times_mean(logit_TE, expert_TK) / logit_TE.shape[1], top_k=2, second=0.5),
    "GShard (lingvo)": Convention(
        "tensorflow/lingvo, gshard_layers.py, Top2GatingOnLogits",
        lambda T, E, K, factor: _up_to(4, int(T * factor / E)), "rank", _shares, _e_first, top_k=2, coef=0.01),
    "Switch (Mesh TF)": Convention(
        "arXiv:2101.03961, sec. 2.2; tensorflow/mesh, moe.py, _rand_1_gating",
        lambda T, E, K, factor: max(min(T, int(T * factor / E)), 4), "position", _raw, _e_first, top_k=1, coef=0.01),
    "ST-MoE (Mesh TF)": Convention(
        "arXiv:2202.08906; tensorflow/mesh, moe.py, _top_2_gating",
        lambda T, E, K, factor: max(min(T, int(T * factor / E)), 4), "rank", _shares, _e_first, top_k=2, coef=0.01,
        second=0.2),
    "ST-MoE (Flaxformer)": Convention(
        "google/flaxformer, moe/routing.py", lambda T, E, K, factor: max(round(T * factor / E), 4), "rank", _raw,
        _e_all),
    "Mixtral": Convention(
        "arXiv:2401.04088; transformers, modeling_mixtral.py; coefficient: config.json of Mixtral-8x7B-v0.1", _dropless,
        "position", _shares, _e_all, coef=0.02),
    "OLMoE (transformers)": Convention(
        "transformers, modeling_olmoe.py", _dropless, "position", _raw, _e_all, coef=0.01),
    "OLMoE (training)": Convention(
        "arXiv:2409.02060; allenai/OLMoE, configs", _dropless, "position", _raw, _e_all_over_k, coef=0.01),
    "DeepSeek-V3": Convention(
        "arXiv:2412.19437, sec. 2.1.2; deepseek-ai/DeepSeek-V3, inference/model.py", _dropless, "position",
        _sigmoid_shares, _sigmoid_e_all_over_k, coef=0.0001),
    "MegaBlocks": Convention(
        "arXiv:2211.15841; databricks/megablocks, layers/moe.py", lambda T, E, K, factor: int(factor * K * T / E),
        "position", _raw, _e_all_over_k, coef=0.1),
    "Tutel": Convention(
        "microsoft/tutel, fast_dispatch.py, losses.py", lambda T, E, K, factor: K * int(factor * math.ceil(T / E)),
        "rank", _shares, _e_first),
    "minimoe": Convention(
        "minimoe/moe/capacity.py, losses/balance.py", _our_capacity, "position", _our_gates, _our_balance, coef=0.01),
}
"""Name -> Convention.  MegaBlocks is the layer with a capacity; its dropless one keeps all.  Mixtral's and OLMoE's code
in transformers pools f and P over the layers before it multiplies them, which for one layer is the same.  Mixtral was
released with a coefficient of 0.02; 0.001 is the default of the class in transformers."""
