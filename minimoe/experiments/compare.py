"""MoE and dense models at equal steps, equal training FLOPs and equal time: which is ahead depends on the budget.

A model with a different number of steps has its own schedule: its learning rate falls over all its steps.  The dense
models are a family of widths, which shows the dense model that an MoE is worth.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minimoe import cost, files, terminal
from minimoe.analysis import bench
from minimoe.config import ModelConfig, preset, variants
from minimoe.config.variants import DENSE_ACTIVE, DENSE_TOTAL
from minimoe.cost import deployment, ours, quantities
from minimoe.experiments import archive, effective_size, engine, wording
from minimoe.experiments.engine import Experiment, Variant
from minimoe.plots import figures, pareto
from minimoe.training import data, loop, progress

NEAR = 0.01
"""Budgets that differ by less count as equal: nothing is trained again."""

CLAIMED_SHARE, CLAIMED = (0.10, 0.25), (4, 10)
"""The popular claim: with 10 to 25 % of the parameters active, 4 to 10 times less compute."""

LEGEND = """at equal steps, training FLOPs or time, compared with the {0} at equal steps.  minus MoE: loss minus that of
the MoE; above 0 is worse.  seeds: how many agree.  dense: as wide as the {0}'s active or total experts."""
"""The legend of the tables of entries, with the name of the MoE."""


class Models(NamedTuple):
    """The models to compare.  main: the name of the MoE that sets the budgets.  moe, dense: name -> ModelConfig."""

    main: str
    moe: dict
    dense: dict
    training: tuple

    @property
    def all(self):
        """Name -> ModelConfig of all models, the dense ones first."""
        return self.dense | self.moe

    def twin(self, name):
        """The name of the dense model with as many parameters in its network as an MoE has in its experts."""
        width = variants.total_width(self.moe[name])
        return next(dense for dense, config in self.dense.items() if config.d_hidden == width)


def models(quick, vocab_size):
    """The Models: MoEs with half, once and twice the experts, and dense ones from half the active to twice the total
    width; or a quick set, which is far too short to compare.
    """
    moe, training = preset("tour-quick" if quick else "tour", {"vocab_size": vocab_size})
    training = replace(training, n_steps=20) if quick else training
    active, total, E = variants.active_width(moe), variants.total_width(moe), moe.n_experts
    widths = {"dense, half of active": active // 2, DENSE_ACTIVE: active, "dense, half of total": total // 2,
              DENSE_TOTAL: total, "dense, twice total": 2 * total}
    sparse = (replace(moe, n_experts=n) for n in (E // 2, E, 2 * E))
    return Models(_name(moe), {_name(config): config for config in sparse},
                  {name: variants.dense(moe, width) for name, width in widths.items()}, training)


def _name(config):
    return f"MoE, {config.top_k} of {config.n_experts}"


def folder_of(quick):
    """Where the runs are."""
    return Path("runs/compare-quick" if quick else "runs/compare")


def experiment(quick, seeds, compared, step_seconds):
    """The Experiment: all models at equal steps, then two dense ones at equal FLOPs and at equal time.

    compared: Models.  step_seconds: name -> seconds of a training step.   A label is "name; budget".
    """
    training, n_steps, folder = compared.training, compared.training.n_steps, folder_of(quick)
    flops = {name: _step_cost(config, training).training_flops for name, config in compared.all.items()}
    steps = {(name, "steps"): n_steps for name in compared.all}
    for budget, spent in (("FLOPs", flops), ("time", step_seconds)):
        for name in (DENSE_ACTIVE, DENSE_TOTAL):
            ratio = spent[compared.main] / spent[name]
            steps[name, budget] = n_steps if abs(ratio - 1) < NEAR else max(round(n_steps * ratio), 1)
    warm_up = training.warmup_steps
    cells = {f"{name}; {budget}": Variant(
        compared.all[name], replace(training, n_steps=n, warmup_steps=min(warm_up, max(n // 2, 1))),
        f"{engine.slug(name)}-{n}-steps") for (name, budget), n in steps.items()}
    return Experiment("compare", "which model is ahead at equal steps, FLOPs and time?", cells, seeds, folder, measure,
                      archive=(folder if quick else archive.WRITTEN) / "compare.npz",
                      figure=(folder if quick else Path("figures")) / "compare.png")


def main(quick=False, seeds=3, fresh=False, threads=1, say=terminal.say):
    """Train what is not trained yet, print the verdict and the tables, draw the picture.

    quick: the small version.  seeds: runs of each.  fresh: train again what is there.  threads: see `loop.train`.
    say: prints.
    """
    corpus = data.embedded_corpus()
    compared = models(quick, len(corpus.tokenizer))
    say(terminal.fill(
        f"Training {len(compared.all)} models for equal steps, then two dense ones for equal FLOPs and equal time.\n"
        "Interrupt when you like: the same command resumes.\n"))
    step_seconds = _timed(folder_of(quick) / "seconds.json", compared, corpus, fresh, threads)
    comparison = experiment(quick, seeds, compared, step_seconds)
    found = engine.run(comparison, corpus, fresh, threads, say,
                       ended=wording.each_loss(say, lambda measured: measured["curve"][-1]))
    found.require_all()
    entries = [_entry(label, comparison.variants[label], measured, step_seconds)
               for label, measured in found.measured.items()]
    _keep(comparison.archive, entries)
    answer = wording.too_short(compared.training.n_steps) if quick else verdict(compared, entries, seeds, corpus)
    legend = terminal.fill(" ".join(LEGEND.format(compared.main).split()))
    say(f"\n{answer}\n\n{table(entries, find(entries, compared.main))}\n\n{legend}\n")
    _draw(comparison.figure, compared.main, kept(comparison.archive.parent), "Far too short to compare. " * quick)
    say(f"Picture: {comparison.figure}")


def figure(say=terminal.say):
    """Draw the picture again from the stored results of the last comparison.  Raises ValueError if there are none."""
    path = Path("figures/compare.png")
    _draw(path, models(False, ModelConfig.vocab_size).main, kept())
    say(f"wrote {path}")


def _timed(path, compared, corpus, fresh, threads):
    """Name -> seconds of a training step of each model, measured round-robin once and then read from `path`.  The
    number of steps in a time budget depends on them, so a resumed comparison needs the same numbers.
    """
    if path.exists() and not fresh:
        found = json.loads(path.read_text("utf-8"))
        if found.keys() == compared.all.keys():
            return found
    measured = bench.step_seconds(compared.all, compared.training, corpus, threads, each_round=progress.rounds)
    with files.written(path) as temporary:
        temporary.write_text(json.dumps(measured, indent=2), "utf-8")
    return measured


class Entry(NamedTuple):
    """One model at one budget.

    steps: number of training steps.  parameters: cost.Parameters.  flops: of training, in matrix products.
    seconds: of training, steps times the median step.  ce: one entry per seed, nats per token.
    curve_step, curve: steps of its evaluations and their losses, one row per seed; None where they are not needed.
    """

    name: str
    budget: str
    steps: int
    parameters: tuple
    flops: float
    seconds: float
    ce: np.ndarray
    curve_step: np.ndarray | None = None
    curve: np.ndarray | None = None


def measure(state, corpus):
    """What is stored of a run: its evaluations."""
    return {"curve_step": state.history["eval_step"], "curve": state.history["eval_ce"]}


def _step_cost(config, training):
    return cost.count(config, training.batch, training.sequence, training.groups)


def _entry(label, variant, measured, step_seconds):
    name, budget = label.split("; ")
    counted, steps = _step_cost(variant.model, variant.train), variant.train.n_steps
    flops = steps * variant.train.accumulate * counted.training_flops
    return Entry(name, budget, steps, counted.parameters, flops, steps * step_seconds[name], measured["curve"][:, -1],
                 measured["curve_step"][0], measured["curve"])


def _keep(path, entries):
    """Write the file that the lessons read."""
    archive.write(path, {f"{entry.name}; {entry.budget}": {
        "steps": entry.steps, "parameters": entry.parameters, "flops": entry.flops, "seconds": entry.seconds,
        "curve_step": entry.curve_step, "curve": entry.curve} for entry in entries})


def kept(folder=archive.FOLDER):
    """The Entries of the last comparison, from its stored results.  Raises ValueError if there are none."""
    entries = []
    for label, row in archive.read("compare", folder).items():
        name, budget = label.split("; ")
        entries.append(Entry(
            name, budget, int(row["steps"]), cost.Parameters(*row["parameters"].tolist()), float(row["flops"]),
            float(row["seconds"]), row["curve"][:, -1], row["curve_step"], row["curve"]))
    return entries


def find(entries, name, budget="steps"):
    """The Entry of a model at a budget."""
    return next(entry for entry in entries if (entry.name, entry.budget) == (name, budget))


def _draw(path, main_moe, entries, remark=""):
    gap = find(entries, main_moe).ce.mean() - find(entries, DENSE_TOTAL).ce.mean()
    title = (f"At equal steps, the {main_moe.replace(',', ' with')} experts is {abs(gap):.3f} nats "
             f"{'above' if gap > 0 else 'below'} a dense model of equal size")
    figures.save(pareto.pareto(entries, main_moe, remark + title), path)


def table(entries, moe):
    """All entries as text, a table per budget.  moe: the Entry at equal steps with which the others are compared."""
    tables, sizes = {}, {}
    for entry in entries:
        gap = entry.ce - moe.ce
        same = entry is moe
        rows = tables.setdefault(entry.budget, [(f"at equal {entry.budget}", "steps", "FLOPs", "seconds",
                                                 "validation\nloss", "minus\nMoE", "seeds")])
        rows.append((entry.name, f"{entry.steps:,}", quantities.short(entry.flops), f"{entry.seconds:.3g}",
                     wording.mean_and_spread(entry.ce), "" if same else f"{gap.mean():+.3f}",
                     "" if same else f"{int((gap * gap.mean() > 0).sum())} of {len(gap)}"))
        counts = entry.parameters
        active = f" ({quantities.short(counts.active)} active)" * (counts.active < counts.total)
        sizes[entry.name] = f"{entry.name}: {quantities.short(counts.total)}{active}"
    return "\n\n".join([*map(terminal.table, tables.values()),
                        terminal.fill(f"Parameters: {'; '.join(sizes.values())}.")])


def verdict(compared, entries, seeds, corpus):
    """What each MoE is worth, and how much of the claim about savings holds for it, in words."""
    family, lines, columns = [find(entries, name) for name in compared.dense], [], {}
    for name, config in compared.moe.items():
        moe, twin = find(entries, name), compared.twin(name)
        worth = effective_size.worth(moe, family)
        lines.append(effective_size.worth_words(moe, worth))
        pair = (config, compared.dense[twin]), (moe, find(entries, twin))
        columns[name] = {"active": moe.parameters.active / moe.parameters.total,
                         **savings(compared.training, *pair, corpus),
                         "training FLOPs, compared with a dense model of equal loss": worth.flops / moe.flops}
    caveats = ("One recipe for all, chosen on an MoE, and few steps; the dense models grow in the width of their "
               "feed-forward networks alone. A different family, recipe or length may decide otherwise.")
    worths = [terminal.fill(line, hanging="  ") for line in lines]
    return "\n\n".join(["\n".join(worths), claim(columns), terminal.fill(caveats), wording.on_seeds(seeds)])


def savings(training, configs, entries, corpus):
    """Label -> how many times less an MoE needs than a dense model.  configs, entries: of both, the MoE first."""
    moe, dense = entries
    peaks = [cost.peak_bytes(lambda config=config: loop.step_once(loop.new_state(config, training, corpus), corpus))
             for config in configs]
    sparse, full = (ours.architecture(config) for config in configs)
    return {
        "FLOPs of the routed experts": configs[0].n_experts / configs[0].top_k,
        "FLOPs of the whole model": dense.flops / moe.flops,
        "time of a training step": dense.seconds / moe.seconds,
        "memory of a training step": peaks[1] / peaks[0],
        "memory of the weights": dense.parameters.total / moe.parameters.total,
        **{f"bytes read per token, batch size {n}": _read(full, n) / _read(sparse, n) for n in (1, 4, 16)},
    }


def _read(arch, batch):
    return deployment.decode_step(arch, batch, arch.ctx, "float32", cache="float32").bytes


def claim(columns):
    """The claim about savings, MoE by MoE, and a verdict.

    columns: name of an MoE -> label -> how many times less it needs than the dense model of its size; "active" is the
    share of its active parameters.
    """
    labels = [label for label in next(iter(columns.values())) if label != "active"]
    rows = [("times less than a dense model of its size", *columns),
            ("(active parameters)", *(f"{numbers['active']:.0%}" for numbers in columns.values()))]
    rows += [(label, *(f"{numbers[label]:.2f}" for numbers in columns.values())) for label in labels]
    low, high = CLAIMED
    said = (f"The claim: models with {CLAIMED_SHARE[0]:.0%} to {CLAIMED_SHARE[1]:.0%} active parameters save {low} to "
            f"{high} times the compute of a dense model of equal size.")
    verdicts = [_judged(name, numbers, labels) for name, numbers in columns.items()]
    return "\n\n".join([terminal.fill(said), terminal.table(rows), *(terminal.fill(words) for words in verdicts)])


def _judged(name, numbers, labels):
    inside = CLAIMED_SHARE[0] <= numbers["active"] <= CLAIMED_SHARE[1]
    kind = "covered by the claim" if inside else "not covered by the claim"
    holds = [f"{label} ({numbers[label]:.2f})" for label in labels if numbers[label] >= CLAIMED[0]]
    shrinks = [f"{label} ({numbers[label]:.2f})" for label in labels if numbers[label] < CLAIMED[0]]
    return (f"{name}, {numbers['active']:.0%} active, {kind}. {CLAIMED[0]} times or more: "
            f"{', '.join(holds) or 'nothing'}. Less: {', '.join(shrinks) or 'nothing'}.")
