"""MoE and dense models at equal steps, at equal training FLOPs and at equal time: who is ahead depends on the budget.

A model that is given another number of steps has a schedule of its own: its learning rate falls over all of them.  The
dense models are a family of widths, so that one can say which of them a MoE is worth.
"""

import json
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minimoe import cost, files
from minimoe.analysis import bench
from minimoe.config import ModelConfig, TrainConfig, preset
from minimoe.config.variants import DENSE_ACTIVE, DENSE_TOTAL
from minimoe.cost import deployment, ours
from minimoe.experiments import archive, effective_size, wording
from minimoe.plots import figures, pareto
from minimoe.training import corpus, data, loop, progress, runs

NEAR = 0.01
"""Budgets that differ by less are the same: nothing is trained anew."""


@dataclass(frozen=True)
class Plan:
    """What is trained, and where it is put.  moe: the MoE that all are compared with.  seeds: runs of each."""

    moe: ModelConfig
    training: TrainConfig
    seeds: int
    runs: Path
    figure: Path
    archive: Path

    @property
    def main(self):
        """The name of the MoE that all are compared with."""
        return _name(self.moe)

    def dense(self):
        """Name -> ModelConfig of dense models, from half of the MoE's active width to twice its total one."""
        active, total = self.moe.top_k * self.moe.d_hidden, self.moe.n_experts * self.moe.d_hidden
        widths = {"dense, half of active": active // 2, DENSE_ACTIVE: active, "dense, half of total": total // 2,
                  DENSE_TOTAL: total, "dense, twice total": 2 * total}
        return {name: replace(self.moe, n_experts=1, top_k=1, d_hidden=width) for name, width in widths.items()}

    def sparse(self):
        """Name -> ModelConfig of MoEs that do the same work for a token with half, once and twice the experts."""
        E = self.moe.n_experts
        return {_name(config): config for config in (replace(self.moe, n_experts=n) for n in (E // 2, E, 2 * E))}

    def twin(self, name):
        """The name of the dense model that has as many parameters in its block as a MoE has in its experts."""
        moe = self.sparse()[name]
        return next(dense for dense, config in self.dense().items() if config.d_hidden == moe.n_experts * moe.d_hidden)

    @property
    def times(self):
        """Where the seconds of a step of each model are."""
        return self.runs / "seconds.json"

    def path(self, name, steps, seed):
        """Where the checkpoint of a model, a number of steps and a seed is."""
        folder = name.replace(",", "").replace(" ", "-").lower()
        return self.runs / f"{folder}-{steps}-steps" / f"seed{seed}" / "checkpoint.npz"


def _name(config):
    return f"MoE, {config.top_k} of {config.n_experts}"


def plan(quick, seeds, vocab_size):
    """The comparison, or the quick one that shows the same in seconds and is far too short to compare anything."""
    moe, training = preset("tour-quick" if quick else "tour", {"vocab_size": vocab_size})
    if quick:
        return Plan(moe, replace(training, n_steps=20), seeds, Path("runs/compare-quick"),
                    Path("runs/compare-quick/compare.png"), Path("runs/compare-quick/compare.npz"))
    return Plan(moe, training, seeds, Path("runs/compare"), Path("figures/compare.png"),
                archive.WRITTEN / "compare.npz")


def main(quick=False, seeds=3, fresh=False, threads=1, say=print):
    """Train what is not trained yet, print the table and the verdict, draw the picture.

    quick: the small version.  seeds: runs of each.  fresh: train again what is there.  threads: see `loop.train`.
    say: prints.
    """
    text = data.build(corpus.embedded(), TrainConfig().sequence)
    what = plan(quick, seeds, len(text.tokenizer))
    say(f"Training {len(what.dense() | what.sparse())} models for as many steps, then two dense ones for as many FLOPs "
        "and as much time.\nInterrupt when you like: the same command goes on from there.\n")

    def finished(name, config, training, seed):
        return runs.finish(what.path(name, training.n_steps, seed), f"{name}, {training.n_steps} steps, seed {seed}",
                           config, replace(training, seed=seed), text, fresh, say, threads)

    entries = trained(what, finished, _timed(what, text, fresh, threads))
    _keep(what, entries)
    _draw(what, kept(what.archive.parent), "Far too short to compare. " if quick else "")
    say("\n" + effective_size.entries_table(entries, _of(entries, what.main)))
    say(f"{effective_size.LEGEND.format(what.main)}\n\nPicture: {what.figure}\n")
    say("Far too short to compare anything: this shows that all works." if quick else verdict(what, entries, text))


def figure(say=print):
    """Draw the picture again from what was kept of the last comparison.  Raises ValueError if nothing was."""
    what = plan(False, 1, ModelConfig.vocab_size)
    _draw(what, kept())
    say(f"wrote {what.figure}")


def _timed(what, text, fresh, threads):
    """Name -> seconds of a step of each model, measured in turns once and then read: the steps of a budget of time hang
    on it, so that going on with a comparison must find the same.
    """
    configs = what.dense() | what.sparse()
    if what.times.exists() and not fresh:
        found = json.loads(what.times.read_text("utf-8"))
        if found.keys() == configs.keys():
            return found
    measured = bench.step_seconds(configs, what.training, text, threads, each_round=progress.rounds)
    with files.written(what.times) as temporary:
        temporary.write_text(json.dumps(measured, indent=2), "utf-8")
    return measured


def trained(what, finished, seconds):
    """The Entries of a plan: all models at equal steps, then the two dense ones at equal FLOPs and at equal time.

    finished: of (name, ModelConfig, TrainConfig, seed), the finished TrainState.  seconds: of a step, by name.
    """
    known, configs = {}, what.dense() | what.sparse()

    def entries(budget, steps_of):
        """steps_of: name -> steps."""
        for seed in range(what.seeds):
            for name, steps in steps_of.items():  # one run can stand for several budgets
                if (name, steps, seed) not in known:
                    training = replace(what.training, n_steps=steps)
                    known[name, steps, seed] = finished(name, configs[name], training, seed)
        return [_entry(name, configs[name], budget, replace(what.training, n_steps=steps),
                       [known[name, steps, seed] for seed in range(what.seeds)], seconds[name])
                for name, steps in steps_of.items()]

    steps = what.training.n_steps
    found = entries("steps", dict.fromkeys(configs, steps))
    moe = _of(found, what.main)
    for budget, spent in (("FLOPs", "flops"), ("time", "seconds")):
        ratios = {name: getattr(moe, spent) / getattr(_of(found, name), spent) for name in (DENSE_ACTIVE, DENSE_TOTAL)}
        found += entries(budget, {name: steps if abs(ratio - 1) < NEAR else max(round(steps * ratio), 1)
                                  for name, ratio in ratios.items()})
    return found


def _entry(name, config, budget, training, states, seconds):
    counted = cost.count(config, training.batch, training.sequence, training.groups)
    steps, curve = training.n_steps, np.array([state.history["eval_ce"] for state in states])
    flops = steps * training.accumulate * counted.training_flops
    return effective_size.Entry(name, budget, steps, counted.parameters, flops, steps * seconds, curve[:, -1],
                                np.array(states[0].history["eval_step"]), curve)


def _keep(what, entries):
    """Write what the lessons read."""
    archive.write(what.archive, {f"{entry.name}; {entry.budget}": {
        "steps": entry.steps, "parameters": entry.parameters, "flops": entry.flops, "seconds": entry.seconds,
        "curve_step": entry.curve_step, "curve": entry.curve} for entry in entries})


def kept(folder=archive.FOLDER):
    """The Entries of the last comparison, from what was kept of it.  Raises ValueError if nothing was."""
    entries = []
    for label, of in archive.read("compare", folder).items():
        name, budget = label.split("; ")
        entries.append(effective_size.Entry(
            name, budget, int(of["steps"]), cost.Parameters(*of["parameters"].tolist()), float(of["flops"]),
            float(of["seconds"]), of["curve"][:, -1], of["curve_step"], of["curve"]))
    return entries


def _of(entries, name, budget="steps"):
    return next(entry for entry in entries if (entry.name, entry.budget) == (name, budget))


def _draw(what, entries, remark=""):
    gap = _of(entries, what.main).ce.mean() - _of(entries, DENSE_TOTAL).ce.mean()
    title = (f"At equal steps the {what.main} is {abs(gap):.3f} nats {'above' if gap > 0 else 'below'} a dense model "
             "of equal size")
    figures.save(pareto.pareto(entries, what.main, remark + title), what.figure)


def verdict(what, entries, text):
    """What each MoE is worth, and how much of the claim about savings is left of it, in words."""
    family, lines, columns = [_of(entries, name) for name in what.dense()], [], {}
    for name, config in what.sparse().items():
        moe, twin = _of(entries, name), what.twin(name)
        found = effective_size.worth(moe, family)
        lines.append(effective_size.worth_words(moe, found))
        columns[name] = {"active": moe.parameters.active / moe.parameters.total,
                         **savings(what, (config, what.dense()[twin]), (moe, _of(entries, twin)), text),
                         "training FLOPs, beside a dense model of equal loss": found.flops / moe.flops}
    caveats = ("One recipe for all, chosen on a MoE, and few steps; the dense models grow in the width of their "
               "feed-forward blocks alone. Another family, recipe or length may say otherwise.")
    worths = [textwrap.fill(line, 118, subsequent_indent="  ") for line in lines]
    return "\n\n".join(["\n".join(worths), effective_size.claim(columns), textwrap.fill(caveats, 118),
                        wording.on_seeds(what.seeds)])


def savings(what, configs, entries, text):
    """Label -> how many times less a MoE takes than a dense model.  configs, entries: of both, the MoE first."""
    moe, dense = entries
    peaks = [cost.peak_bytes(lambda config=config: loop.step_once(loop.new_state(config, what.training, text), text))
             for config in configs]
    sparse, full = (ours.architecture(config) for config in configs)
    return {
        "FLOPs of the routed experts": configs[0].n_experts / configs[0].top_k,
        "FLOPs of the whole model": dense.flops / moe.flops,
        "time of a training step": dense.seconds / moe.seconds,
        "memory of a training step": peaks[1] / peaks[0],
        "memory of the weights": dense.parameters.total / moe.parameters.total,
        **{f"bytes read for a token of {n} text{'s' * (n > 1)}": _read(full, n) / _read(sparse, n) for n in (1, 4, 16)},
    }


def _read(arch, texts):
    return deployment.decode_step(arch, texts, arch.ctx, "float32", cache="float32").bytes
