"""The symptoms of a failing sparse model, each with its evidence.

A symptom is a function of a TrainState that returns whether to raise the alarm, and the evidence in numbers.  It reads
only what was recorded in training (`training/record.py`).  "Late" is the last quarter of the records, since a single
batch says little, and no router fails at the start.  The evidence is that of the worst layer, by its number in the
model.

"Healthy", below, is the range of nearly all runs of learned routers, three seeds each, on both texts of the project.
"""

import numpy as np

from minimoe.moe import routers, telemetry

LATE = 0.25  # share of the records that counts as late
USED = 0.25  # collapse: experts in use, on a scale from K (all tokens use the same ones) to E; healthy: above 0.3
DEAD = 0.01  # dead: share of an even load; from a hundredth of its tokens an expert learns next to nothing
BUSY = 3.0  # overload: times an even load; usual capacity factors are 1 to 2 (Switch, ST-MoE); healthy: 1 to 2.8
DROPPED = 0.1  # learned routers with a capacity factor of 5/4: 0 to 2 %; a fixed map of characters: 14 %
STARVED = 0.01  # the router's gradient from the task over that of its experts; healthy: 0.08 to 1
SURE = 0.1  # entropy over log E: with 8 experts, the first has a probability of about 0.96; healthy: 0.5 to 0.95
INFORMED = 0.05  # information about the token, over the possible maximum; at random 0, healthy: above 0.25
CHURN = 0.2  # late change of assignments; healthy: below 0.15, but 0.2 to 0.7 if the learning rate stays large
LARGE = 10.0  # logits: odds of exp(10) = 22,000 to 1, and bfloat16 has steps of 1/16 there; healthy: 1 to 4


class NoEvidence(Exception):
    """There is no evidence to judge by; the message says why."""


def collapse(state):
    """Router collapse: a few experts get nearly all tokens.

    Experts in use: exp(entropy of the load), which is n if n experts share the load evenly.  The smaller of the numbers
    for training and held-out text counts, since noise or a plan can balance a training batch.
    """
    config = state.model_config
    if config.top_k == config.n_experts:
        raise NoEvidence("every token uses all experts")
    used_L, words = _experts_in_use(state), f"{{}} of {config.n_experts} experts in use"
    alarm, evidence = _judge(state, used_L, "below", _fewest(config), ".1f", words)
    held_out_L, place = _perplexity(_held_out_load(state)), used_L.argmin()
    trained = _perplexity(_late(state, "load")).mean(axis=0)[place]
    evidence += f": in training {trained:.1f}, on held-out text {held_out_L[place]:.1f}"
    by_plan = alarm and trained >= _fewest(config)
    return alarm, evidence + ("; balanced in training only, by noise or a plan" if by_plan else "")


def dead(state):
    """Dead experts: they get almost no tokens, neither late in training nor on held-out text."""
    share_LE = state.model_config.n_experts * np.maximum(_late(state, "load").mean(axis=0), _held_out_load(state))
    layers = state.model_config.moe_layers
    place, expert = np.unravel_index(share_LE.argmin(), share_LE.shape)
    evidence = (f"the least used, expert {expert} of layer {layers[place]}, has {share_LE.min():.1%} of an even load "
                f"(alarm below {DEAD:.0%})")
    rows = {layer: np.flatnonzero(share_E < DEAD) for layer, share_E in zip(layers, share_LE, strict=True)}
    names = "; ".join(f"layer {layer}: {', '.join(map(str, row))}" for layer, row in rows.items() if len(row))
    return bool(names), f"{evidence}; dead in {names}" if names else evidence


def overload(state):
    """Overload: the busiest expert of a batch has far more than an even load, and the others wait for it.

    Its load is at most E / K times an even load; where that is below the limit, `collapse` detects the problem.
    """
    busy_L = state.model_config.n_experts * _late(state, "load").max(axis=2).mean(axis=0)
    return _judge(state, busy_L, "above", BUSY, ".1f", "the busiest expert has {} times an even load")


def drops(state):
    """Dropped assignments: late in training or on held-out text, whichever is more; and which tokens they hit.

    An expert fills up in the order of its queue.  By default that is the order of the group (of sequences that queue
    together, see `batches`).  So the last sequences lose more assignments than the first ones, and so do the last
    tokens of each sequence.
    """
    config = state.model_config
    if (config.capacity_factor, config.eval_capacity_factor) == (None, None):
        return False, "nothing is dropped: capacity_factor is none"
    drop_L = np.maximum(_late(state, "drop").mean(axis=0), _history(state, "eval_drop_position")[-1].mean(axis=1))
    alarm, evidence = _judge(state, drop_L, "above", DROPPED, ".1%", "{} of assignments dropped")
    position, sequence = (_ends(_late(state, f"drop_{place}").mean(axis=0)[drop_L.argmax()])
                          for place in ("position", "sequence"))
    return alarm, f"{evidence}; from first to last quarter of a sequence {position}, of a group {sequence}"


def starved(state):
    """Starved router gradient: the router's choices hardly change the loss, so that it cannot learn from the task.

    A router learns from the task through its gates alone.  That part of its gradient is compared with the gradient of
    its experts' weights, which comes from the same tokens; the part from its auxiliary losses is excluded.  This
    detects gates that are constant or saturated, but not weights that never change.  AdamW rescales gradients, so a
    starved router still moves, in the direction of its auxiliary losses and of the few undecided tokens.
    """
    _need_scores(state)
    gates_L, own_L, work_L = (_late(state, f"grad_{name}").mean(axis=0) for name in ("gates", "own", "experts"))
    work_L = np.where(work_L > 0, work_L, 1)
    alarm, evidence = _judge(state, gates_L / work_L, "below", STARVED, ".1%",
                             "the task's gradient on the router is {} of that on its experts")
    return alarm, f"{evidence}; that of its auxiliary losses {(own_L / work_L)[(gates_L / work_L).argmin()]:.1%}"


def certainty(state):
    """Entropy collapse: the router is certain about nearly every token, right or wrong, and hardly explores."""
    _need_scores(state)
    most = np.log(state.model_config.n_experts)
    return _judge(state, _late(state, "entropy").mean(axis=0) / most, "below", SURE, ".1%",
                  f"the router's entropy is {{}} of the largest possible, {most:.2f} nats,")


def aimless(state):
    """Balanced but unspecialized: the load is even, but an expert's tokens have nothing in common.

    The expert of an assignment carries I nats of information about its token, at most H(load) - log K.  I is about 0
    for experts chosen at random or by position, and for scores that are noise.  Information about the domain counts
    as well.  Collapsed layers are left out.
    """
    config = state.model_config
    token_L, position_L, domain_L = (np.maximum(_history(state, f"eval_information_{label}")[-1], 0)
                                     for label in ("token", "position", "domain"))
    most_L = np.log(_perplexity(_held_out_load(state))) - np.log(config.top_k)
    balanced_L = (_experts_in_use(state) >= _fewest(config)) & (config.top_k < config.n_experts)
    if not balanced_L.any():
        raise NoEvidence("the load is not balanced, or every token uses all experts")
    share_L = np.where(balanced_L, np.maximum(token_L, domain_L) / np.where(balanced_L, most_L, 1), np.inf)
    words = "the expert carries {} of the information that it could about the token"
    alarm, evidence = _judge(state, share_L, "below", INFORMED, ".1%", words)
    n_tokens = state.train_config.eval_batches * state.train_config.batch * state.train_config.sequence
    if alarm and n_tokens * config.top_k < 5 * config.vocab_size * config.n_experts:
        raise NoEvidence(f"{n_tokens} held-out tokens are too few to tell; increase eval_batches")
    i = share_L.argmin()
    return alarm, (f"{evidence}: {token_L[i]:.2f} nats about the token, {domain_L[i]:.2f} about the domain, "
                   f"{position_L[i]:.2f} about the position")


def churn(state):
    """Churn: late in training tokens still change experts, so experts have learned from tokens that they will not get.

    Compares the same held-out tokens at the last evaluation and at the last one at least a tenth of the run before it,
    and only in the last quarter of a run: until then, change is learning.
    """
    step, n_steps = np.array(_history(state, "eval_step")), state.train_config.n_steps
    if min(len(step), len(_history(state, "eval_experts"))) < 2 or step[-1] < (1 - LATE) * n_steps:
        raise NoEvidence(f"too early to tell, at step {state.step} of {n_steps}, or only one evaluation")
    packed = _history(state, "eval_experts")
    step = step[-len(packed):]  # a run that an earlier version began has steps without experts
    before = max(np.sum(step <= step[-1] - n_steps / 10) - 1, 0)
    sets = [np.unpackbits(packed[i], axis=2, count=state.model_config.n_experts).astype(bool) for i in (before, -1)]
    churn_L = np.array([telemetry.churn(*of_layer) for of_layer in zip(*sets, strict=True)])
    return _judge(state, churn_L, "above", CHURN, ".1%",
                  f"{{}} of assignments changed between steps {step[before]} and {step[-1]}")


def growth(state):
    """Logit growth: the scores are so large that gates saturate and their differences lose precision."""
    _need_scores(state)
    late_L = _late(state, "logit").mean(axis=0)
    alarm, evidence = _judge(state, late_L, "above", LARGE, ".1f", "the largest logit of a token is {} nats")
    return alarm, f"{evidence}; in the first recorded batch {_history(state, 'router_logit')[0][late_L.argmax()]:.1f}"


def _judge(state, value_L, side, limit, form, words):
    """Whether any layer is on the wrong side of the limit; the worst one in words."""
    bad_L, worst = (value_L > limit, value_L.argmax()) if side == "above" else (value_L < limit, value_L.argmin())
    layers = state.model_config.moe_layers
    evidence = (f"{words.format(format(value_L[worst], form))} in layer {layers[worst]} (alarm {side} "
                f"{format(limit, '.0%' if '%' in form else 'g')})")
    also = ", ".join(str(layers[i]) for i in np.flatnonzero(bad_L) if i != worst)
    return bool(bad_L.any()), f"{evidence}; also in {also}" if also else evidence


def _history(state, name):
    if not state.history.get(name):
        raise NoEvidence("not recorded: a run that has just begun, or one of an earlier version")
    if not np.isfinite(state.history[name]).all():
        raise NoEvidence(f"its record is not finite ({name})")
    return state.history[name]


def _late(state, name):
    """The late records of the routers, [records, L, ...]."""
    records = np.array(_history(state, f"router_{name}"))
    return records[-max(round(LATE * len(records)), 1):]


def _need_scores(state):
    if not routers.POLICIES[state.model_config.router].weights(state.model_config, 1.0):
        raise NoEvidence(f"router {state.model_config.router!r} has no scores and nothing to learn")


def _held_out_load(state):
    """The load of each expert at the last evaluation, over all domains: load_LE."""
    return _history(state, "eval_load")[-1].mean(axis=0)


def _experts_in_use(state):
    return np.minimum(_perplexity(_late(state, "load")).mean(axis=0), _perplexity(_held_out_load(state)))


def _fewest(config):
    """The number of experts in use below which a layer has collapsed."""
    return config.top_k + USED * (config.n_experts - config.top_k)


def _perplexity(load):
    """exp(entropy) over the last axis."""
    return np.exp(-(load * np.log(np.where(load > 0, load, 1))).sum(axis=-1))


def _ends(share):
    """The mean over the first quarter of an array and over the last, in words."""
    quarter = max(len(share) // 4, 1)
    return f"{share[:quarter].mean():.1%} to {share[-quarter:].mean():.1%}"
