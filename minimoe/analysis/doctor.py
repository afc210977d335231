"""The doctor: the ways in which a sparse model fails, the evidence for each in the record of a run, and what helps."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minimoe import terminal
from minimoe.analysis import symptoms
from minimoe.config import describe
from minimoe.sparsity import matrices, pruning

FEW_STEPS = 50
"""In fewer steps nothing has had time to fail."""


class Mode(NamedTuple):
    """A failure.  look: TrainState -> (alarm, evidence).  meaning: of the alarm.  remedy: what usually helps."""

    name: str
    look: Callable
    meaning: str
    remedy: str


class Finding(NamedTuple):
    """The result of one check.  alarm: None if there is no evidence; `evidence` then says why."""

    mode: Mode
    alarm: bool | None
    evidence: str


MODES = (
    Mode("router collapse", symptoms.collapse,
         "Nearly all tokens go to the same few experts: the memory of a large layer, the work of a small one.",
         "a larger --balance-coef; --router sigmoid_bias, which balances without a loss; a lower --learning-rate, "
         "since an expert that gets tokens improves, and so gets more. For base, sinkhorn and noisy_topk, which "
         "balance in training only: a --balance-coef above 0."),
    Mode("dead experts", symptoms.dead,
         "These experts get no tokens, so they learn nothing, so they get no tokens.",
         "a larger --balance-coef, which also moves the scores of experts that no token chose; --router noisy_topk, "
         "which tries them occasionally; fewer experts."),
    Mode("overload", symptoms.overload,
         "One expert has several times its share. With expert parallelism, all devices wait for it.",
         "a larger --balance-coef; --router sigmoid_bias or base."),
    Mode("dropped tokens", symptoms.drops,
         "Experts are full. A token that finds no room passes the layer unchanged: by default, the last ones of a "
         "batch.",
         "a larger --capacity-factor (none drops nothing); a more even load, by a larger --balance-coef."),
    Mode("starved router", symptoms.starved,
         "The router's decisions hardly change the loss: its gates are constant, or 0 and 1. It cannot learn.",
         "smaller logits, by a larger --z-coef; a lower --learning-rate."),
    Mode("entropy collapse", symptoms.certainty,
         "The router gives nearly all weight to one expert, for nearly every token. Second choices count for nothing.",
         "a larger --z-coef; an --entropy-coef, which rewards uncertainty; a lower --learning-rate; --router "
         "noisy_topk."),
    Mode("unspecialized", symptoms.aimless,
         "The load is even, but the expert carries no information about the token: it is chosen at random, by position "
         "or by noise.",
         "a router that looks at the token (not random or uniform); a smaller --balance-coef, if it drowns the task; "
         "more --n-steps."),
    Mode("late churn", symptoms.churn,
         "Training ends while tokens still change experts, which have learned from tokens that they will not get.",
         "a learning rate that falls to the end (a small --min-learning-rate); a lower --learning-rate."),
    Mode("logit growth", symptoms.growth,
         "Scores are so large that probabilities are 0 or 1, and rounding decides in low precision.",
         "a larger --z-coef, which pulls logits to 0; a lower --learning-rate; --weight-decay."),
)
"""All that the doctor looks for, in the order of the page."""

WORDS = (
    "An assignment is one token sent to one expert; load, an expert's share of the assignments; even load, its share "
    "if all had the same; experts in use, how many would share this load evenly; logit, the router's score; gate, "
    "the weight of an expert's output; entropy, how unsure the router is; nats, natural units of information; held-out "
    "text, text that is not trained on. Each line is about its worst layer, in the last quarter of "
    "training or at the last evaluation.")


def examine(state):
    """A Finding of each mode; none if no layer has a choice to make."""
    findings = []
    for mode in MODES if state.model_config.moe_layers and state.model_config.n_experts > 1 else ():
        try:
            findings.append(Finding(mode, *mode.look(state)))
        except symptoms.NoEvidence as reason:
            findings.append(Finding(mode, None, str(reason)))
    return findings


def report(state, detail=False):
    """The findings as text: the verdict, then for each alarm the evidence, what it means and what usually helps.

    detail: whether with the evidence of every mode, and what its words mean.
    """
    config, findings = state.model_config, examine(state)
    if not findings:
        return terminal.fill("\n".join(["Nothing to examine: no layer of this model sends its tokens to one of several "
                                        "experts; it is dense or a Soft MoE.", *_masks(state)]))
    if state.step == 0:
        return terminal.fill("\n".join([
            "Too early: this run begins with the weights of a trained model, such as a pruned one, and has made no "
            "step since. Nothing is recorded of its routers; train it first, with train --resume.", *_masks(state)]))
    run = (f"router {config.router}, {config.n_experts} experts, {config.top_k} per token; auxiliary losses: "
           f"{describe.describe_losses(config)}; step {state.step} of {state.train_config.n_steps}")
    verdicts = {True: "ALARM", False: "ok", None: "-"}
    paragraphs = [terminal.fill("\n".join([_verdict(state, findings), run, *_masks(state)]))]
    if detail:
        rows = [("", "failure", "evidence"), *((verdicts[alarm], mode.name, text) for mode, alarm, text in findings)]
        paragraphs.append(terminal.table(rows, left=(0, 1, 2)))
    for mode, alarm, evidence in findings:
        lines = [f"{mode.name}: {mode.meaning}", f"  What usually helps: {mode.remedy}"]
        lines[1:1] = [] if detail else [f"  Evidence: {evidence}."]
        paragraphs += [terminal.fill("\n".join(lines), hanging="  ")] * bool(alarm)
    healthy = ", ".join(mode.name for mode, alarm, _ in findings if alarm is False)
    busiest = [evidence[0].upper() + evidence[1:] + "." for mode, alarm, evidence in findings
               if mode.look is symptoms.overload and alarm is False]  # pictures of loads show it first
    more = [f"No sign of: {healthy}."] * bool(healthy) + busiest + ["The evidence for and against each: --detail"]
    return "\n\n".join([*paragraphs, terminal.fill(WORDS if detail else "\n".join(more))])


def _masks(state):
    """A list of one line on the masks of a sparse run, or of none."""
    if not state.masks:
        return []
    stacks = [matrices.stack(name, mask) for name, mask in state.masks.items()]
    kept = {words: np.concatenate([stack.any(axis=axis).ravel() for stack in stacks]) for axis, words in (
        (1, "outputs have no weight left, so they are always 0"), (2, "inputs are not used"))}
    lost = [f"{(~used).sum():,} of {used.size:,} {words}" for words, used in kept.items() if not used.all()]
    zeros = pruning.report(state.params, state.masks).pruned.sparsity
    return [f"sparse: {zeros:.1%} of the weights with a mask are zero; in their matrices "
            + ("; ".join(lost) or "every output and every input has a weight left")]


def _verdict(state, findings):
    alarms, unknown = ([mode.name for mode, alarm, _ in findings if alarm is sort] for sort in (True, None))
    if alarms:
        return f"{len(alarms)} alarm{'s' * (len(alarms) > 1)}: {', '.join(alarms)}."
    but = f"; nothing to judge {', '.join(unknown)} by" if unknown else ""
    early = state.step < (1 - symptoms.LATE) * state.train_config.n_steps or state.step < FEW_STEPS
    health = "but it is too early to call the routers healthy" if early else "the routers of this run look healthy"
    return f"No alarm{', ' if early else ': '}{health}{but}."
