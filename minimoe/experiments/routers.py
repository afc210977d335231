"""All routers on one small budget: the same text, steps and seeds, the same parameters and expert work per token.

A router that supports only one expert per token gets half as many experts of twice the width, which is the same number
of parameters and FLOPs.  Experts have a limited capacity in training, so that an uneven load costs tokens.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minimoe import terminal
from minimoe.config import ModelConfig, preset
from minimoe.experiments import archive, engine, wording
from minimoe.experiments.engine import Experiment, Variant
from minimoe.moe import routers
from minimoe.plots import figures, router_comparison
from minimoe.training import data

DENSE = "dense"
"""The model without a choice: one expert that does as much work as all experts of a token."""

LAST = 10
"""Records of the router at the end of a run over which loads and drops are averaged."""


def experiment(quick, seeds, vocab_size):
    """The comparison, or the quick one that shows the same in seconds and is far too short to compare anything."""
    base, training = preset("routers-quick" if quick else "routers", {"vocab_size": vocab_size})
    configs = {DENSE: replace(base, n_experts=1, top_k=1, capacity_factor=None)}
    for name, page in routers.ROUTERS.items():
        room = {"capacity_factor": None} if page.FACTS.soft else {}
        configs[name] = replace(base if page.FACTS.top_k == 1 else base.finer(2), router=name, **room)
    folder = Path("runs/routers-quick" if quick else "runs/routers")
    return Experiment("routers", "which router is best on one small budget?",
                      {name: Variant(config, training, name) for name, config in configs.items()}, seeds, folder,
                      measure, archive=(folder if quick else archive.WRITTEN) / "routers.npz",
                      figure=(folder if quick else Path("figures")) / "routers.png")


def main(quick=False, seeds=3, fresh=False, threads=1, say=terminal.say):
    """Train each router that is not trained yet, print the verdict and the table, draw the figure.

    quick: the small version.  seeds: runs of each.  fresh: train again what is there.  threads: see `loop.train`.
    say: prints.
    """
    corpus = data.embedded_corpus()
    comparison = experiment(quick, seeds, len(corpus.tokenizer))
    say(f"Training {len(comparison.variants)} models, {wording.of_seeds(seeds)} each, {_n_steps(comparison)} steps.\n"
        "Interrupt when you like: the same command resumes.\n")
    found = engine.run(comparison, corpus, fresh, threads, say,
                       ended=wording.each_loss(say, lambda measured: measured["ce"]))
    results = {name: Result(**measured) for name, measured in found.measured.items()}
    if results:
        answer = verdict(results) if not (quick or found.failures) else wording.too_short(_n_steps(comparison)) * quick
        say("\n".join(["", *[f"{answer}\n"] * bool(answer), table(results, comparison.variants)]))
    found.require_all()
    archive.write(comparison.archive, found.measured)
    _draw(comparison, kept(comparison.archive.parent))
    say(f"\nPicture: {comparison.figure}")


def kept(folder=archive.FOLDER):
    """Name -> Result of the last comparison, from its stored results.  Raises ValueError if there are none."""
    return {name: Result(**measured) for name, measured in archive.read("routers", folder).items()}


def figure(say=terminal.say):
    """Draw the figure again from the stored results of the last comparison.  Raises ValueError if there are none."""
    comparison = experiment(False, 1, ModelConfig.vocab_size)
    _draw(comparison, kept())
    say(f"wrote {comparison.figure}")


def _draw(comparison, results):
    drawn = router_comparison.routers(results, kinds(), title(results, _n_steps(comparison)))
    figures.save(drawn, comparison.figure)


def _n_steps(comparison):
    return comparison.variants[DENSE].train.n_steps


class Result(NamedTuple):
    """The results of one router.  One entry per seed:

    ce: validation loss, nats per token.   load: of the busiest expert, over an even load (1); NaN without assignments.
    drop: share of assignments dropped at the end of training (1).   seconds: median step.
    """

    ce: np.ndarray
    load: np.ndarray
    drop: np.ndarray
    seconds: np.ndarray


def measure(state, corpus):
    """The results of one run, by the names of Result."""
    history = state.history
    return {"ce": history["eval_ce"][-1], "load": _busiest(history),
            "drop": np.mean(history["drop"][-LAST * state.train_config.record_every:]),
            "seconds": np.median(history["seconds"])}


def _busiest(history):
    load_LE = np.mean(history["router_load"][-LAST:], axis=0)
    return float(load_LE.max() * load_LE.shape[1]) if load_LE.size and load_LE.shape[1] > 1 else np.nan


def kinds():
    """Name -> "causal", "causal in evaluation" or "sees the future", as the routers declare."""
    words = {DENSE: "causal"}
    for name, page in routers.ROUTERS.items():
        if not page.FACTS.causal_in_evaluation:
            words[name] = "sees the future"
        else:
            words[name] = "causal" if page.FACTS.causal else "causal in evaluation"
    return words


def table(results, variants):
    """The comparison as text, lowest loss first, routers that see the future last.  variants: of the experiment."""
    rows = [("router", "experts", "validation\nloss", "busiest\nexpert", "dropped", "s/step", "looks at")]
    for name in _order(results):
        r, config = results[name], variants[name].model
        busiest, dropped = (f"{r.load.mean():.2f}", f"{r.drop.mean():.1%}") if np.isfinite(r.load).all() else "--"
        rows.append((name, f"{config.top_k} of {config.n_experts}", wording.mean_and_spread(r.ce), busiest, dropped,
                     f"{np.median(r.seconds):.4f}", kinds()[name].replace("evaluation", "eval")))
    return "\n".join([terminal.table(rows, left=(0, 6)), "", *map(terminal.fill, NOTES)])


NOTES = (
    "validation loss: nats per token on held-out text, dropless; mean and standard deviation over seeds",
    "busiest expert: its load over an even one, mean over the last records, worst layer.  dropped: late in training",
    "looks at: 'causal in eval' routers use the rest of the batch to balance the load in training; those that 'see the "
    "future' use later tokens in evaluation too, so their loss does not measure prediction and must not be compared")


def title(results, n_steps):
    """The message of the figure, in a sentence."""
    fair = [name for name in _order(results) if kinds()[name] != "sees the future"]
    apart = results[fair[-1]].ce.mean() - results[fair[0]].ce.mean()
    return (f"After {n_steps} steps, {fair[0]} has the lowest loss and {fair[-1]} the highest, {apart:.2f} nats apart\n"
            "(not counting the routers that see the future)")


def verdict(results):
    """What the numbers show, in words, for or against learned routing."""
    fair = {name: r.ce for name, r in results.items() if kinds()[name] != "sees the future"}
    best = min(fair, key=lambda name: fair[name].mean())
    lines = []
    for name in (name for name in ("random", "uniform", DENSE) if name != best):
        gap = fair[name] - fair[best]
        lines.append(f"{best} is {gap.mean():.3f} nats below {name}, and below it in {(gap > 0).sum()} of {len(gap)} "
                     "seeds.")
    tied = [name for name in fair if name != best and not (fair[name] > fair[best]).all()]
    if tied:
        lines.append(f"No seed-for-seed difference from {best}: {', '.join(tied)}. Their order shows nothing.")
    cheats = [name for name in results if name not in fair]
    if cheats:
        lines.append(f"{' and '.join(cheats)} look at later tokens: their losses do not measure prediction.")
    lines.append("One small model, few steps, one recipe for all: a paper's router may need its paper's size.")
    anecdote = " (one seed is an anecdote)" if len(fair[best]) == 1 else ""
    return wording.bullets("What the numbers show" + anecdote, lines)


def _order(results):
    return sorted(results, key=lambda name: (kinds()[name] == "sees the future", results[name].ce.mean()))
