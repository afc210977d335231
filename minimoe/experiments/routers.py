"""All routers on one small budget: the same text, steps and seeds, as many parameters and as much expert work a token.

A router that knows one expert a token gets half as many experts of twice the width, which is the same number of
parameters and of FLOPs.  Experts have limited room while training, so that an uneven load costs tokens.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from minimoe.config import ModelConfig, TrainConfig, preset
from minimoe.experiments import archive, wording
from minimoe.moe import routers
from minimoe.names import ROUTERS
from minimoe.plots import figures, router_comparison
from minimoe.training import corpus, data, runs

DENSE = "dense"
"""The model without a choice: one expert that does as much work as a token's experts together."""

LAST = 10
"""Records of the router at the end of a run over which loads and drops are averaged."""


@dataclass(frozen=True)
class Plan:
    """What is trained, and where it is put.  seeds: runs of each."""

    whole: ModelConfig
    training: TrainConfig
    seeds: int
    runs: Path
    figure: Path
    archive: Path

    def configs(self):
        """Name -> ModelConfig of the dense model and of every router, in the order of the table of names."""
        finer = self.whole.finer(2)
        configs = {DENSE: replace(self.whole, n_experts=1, top_k=1, capacity_factor=None)}
        for name, router in ROUTERS.items():
            base = self.whole if router.top_k == 1 else finer
            room = {"capacity_factor": None} if router.soft else {}
            configs[name] = replace(base, router=name, **room)
        return configs

    def path(self, name, seed):
        """Where the checkpoint of a router and seed is."""
        return self.runs / name / f"seed{seed}" / "checkpoint.npz"


@dataclass(frozen=True)
class Result:
    """What one router reached.  One entry a seed:

    ce: validation loss, nats per token.   load: of the busiest expert, over an even load (1); NaN without assignments.
    drop: share of assignments dropped at the end of training (1).   seconds: median step.
    """

    ce: np.ndarray
    load: np.ndarray
    drop: np.ndarray
    seconds: np.ndarray


def plan(quick, seeds, vocab_size):
    """The comparison, or the quick one that shows the same in seconds and is far too short to compare anything."""
    whole, training = preset("routers-quick" if quick else "routers", {"vocab_size": vocab_size})
    if quick:
        return Plan(whole, training, seeds, Path("runs/routers-quick"), Path("runs/routers-quick/routers.png"),
                    Path("runs/routers-quick/routers.npz"))
    return Plan(whole, training, seeds, Path("runs/routers"), Path("figures/routers.png"),
                archive.WRITTEN / "routers.npz")


def main(quick=False, seeds=3, fresh=False, threads=1, say=print):
    """Train each router that is not trained yet, print the table and the verdict, draw the figure.

    quick: the small version.  seeds: runs of each.  fresh: train again what is there.  threads: see `loop.train`.
    say: prints.
    """
    text = data.build(corpus.embedded(), TrainConfig().sequence)
    zoo = plan(quick, seeds, len(text.tokenizer))
    configs = zoo.configs()
    say(f"Training {len(configs)} models, {seeds} seeds each, {zoo.training.n_steps} steps.\n"
        "Interrupt when you like: the same command goes on from there.\n")
    found = {}
    for name, config in configs.items():
        states = [runs.finish(zoo.path(name, seed), f"{name}, seed {seed}", config, replace(zoo.training, seed=seed),
                              text, fresh, say, threads) for seed in range(seeds)]
        found[name] = measure(states)
    archive.write(zoo.archive, {name: asdict(result) for name, result in found.items()})
    _draw(zoo, kept(zoo.archive.parent))
    say("\n" + table(found, configs))
    say(f"\nPicture: {zoo.figure}")
    say("\n" + ("Far too short to compare anything: this shows that all works." if quick else verdict(found)))


def kept(folder=archive.FOLDER):
    """Name -> Result of the last comparison, from what was kept of it.  Raises ValueError if nothing was."""
    return {name: Result(**of) for name, of in archive.read("routers", folder).items()}


def figure(say=print):
    """Draw the figure again from what was kept of the last comparison.  Raises ValueError if nothing was."""
    zoo = plan(False, 1, ModelConfig.vocab_size)
    _draw(zoo, kept())
    say(f"wrote {zoo.figure}")


def _draw(zoo, results):
    figures.save(router_comparison.routers(results, kinds(), title(results, zoo.training.n_steps)), zoo.figure)


def measure(states):
    """The Result of one router's runs, one a seed."""
    histories = [state.history for state in states]
    return Result(
        ce=np.array([h["eval_ce"][-1] for h in histories]), load=np.array([_busiest(h) for h in histories]),
        drop=np.array([np.mean(h["drop"][-LAST * s.train_config.record_every:])
                       for h, s in zip(histories, states, strict=True)]),
        seconds=np.array([np.median(h["seconds"]) for h in histories]))


def _busiest(history):
    load_LE = np.mean(history["router_load"][-LAST:], axis=0)
    return float(load_LE.max() * load_LE.shape[1]) if load_LE.size and load_LE.shape[1] > 1 else np.nan


def kinds():
    """Name -> "causal", "causal in evaluation" or "sees the future", as the routers declare."""
    words = {DENSE: "causal"}
    for name, router in ROUTERS.items():
        policy = routers.POLICIES.get(name)
        if router.soft or not policy.CAUSAL_IN_EVALUATION:
            words[name] = "sees the future"
        else:
            words[name] = "causal" if policy.CAUSAL else "causal in evaluation"
    return words


def table(results, configs):
    """The comparison as text, the lowest loss first, those that see the future last."""
    lines = [f"{'router':<15}{'experts':>9}{'validation loss':>18}{'busiest expert':>17}{'dropped':>10}"
             f"{'s/step':>9}  {'looks at'}"]
    for name in _order(results):
        r, config = results[name], configs[name]
        busiest = wording.mean_and_spread(r.load, 2) if np.isfinite(r.load).all() else "-"
        lines.append(f"{name:<15}{f'{config.top_k} of {config.n_experts}':>9}{wording.mean_and_spread(r.ce):>18}"
                     f"{busiest:>17}{r.drop.mean():>10.1%}"
                     f"{np.median(r.seconds):>9.4f}  {kinds()[name]}")
    return "\n".join(lines + ["", NOTES])


NOTES = """\
validation loss: nats per token on held-out text, dropless; mean and standard deviation over seeds
busiest expert: its load over an even one, mean over the last records, worst layer       dropped: late in training
looks at: 'causal in evaluation' needs other tokens to balance the load while it trains; what 'sees the future' is told
later tokens in evaluation too, so its loss is not one of prediction and must not be compared"""


def title(results, n_steps):
    """What the figure shows, in a sentence."""
    fair = [name for name in _order(results) if kinds()[name] != "sees the future"]
    return (f"After {n_steps} steps {fair[0]} is lowest among routers that do not see the future, {fair[-1]} highest: "
            f"{results[fair[-1]].ce.mean() - results[fair[0]].ce.mean():.2f} nats apart")


def verdict(results):
    """What the numbers show, in words, for or against learned routing."""
    fair = {name: r.ce for name, r in results.items() if kinds()[name] != "sees the future"}
    best = min(fair, key=lambda name: fair[name].mean())
    n_seeds = len(fair[best])
    lines = ["What the numbers show" + (" (one seed is an anecdote)" if n_seeds == 1 else "")]
    for name in (name for name in ("random", "uniform", DENSE) if name != best):
        gap = fair[name] - fair[best]
        lines.append(f"- {best} is {gap.mean():.3f} nats below {name}, and below it in {(gap > 0).sum()} of {len(gap)} "
                     "seeds.")
    tied = [name for name in fair if name != best and not (fair[name] > fair[best]).all()]
    if tied:
        lines.append(f"- No seed-for-seed difference from {best}: {', '.join(tied)}. Their order shows nothing.")
    cheats = [name for name in results if name not in fair]
    if cheats:
        lines.append(f"- {' and '.join(cheats)} look at later tokens: their losses are not those of prediction.")
    lines.append("- One small model, few steps, one recipe for all: a paper's router may need its paper's size.")
    return "\n".join(lines)


def _order(results):
    return sorted(results, key=lambda name: (kinds()[name] == "sees the future", results[name].ce.mean()))
