"""The ways to be sparse, held next to smaller dense models, all trained for the same FLOPs: see `sparse_plan`."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from minimoe import terminal
from minimoe.config import preset
from minimoe.cost import quantities, sparse
from minimoe.experiments import archive, engine, executors, sparse_plan, wording
from minimoe.experiments.engine import Experiment
from minimoe.experiments.sparse_plan import DENSE, SMALLER, SOURCE
from minimoe.plots import figures, sparsity_comparison
from minimoe.training import data

USES = {
    "MoE": "more parameters at the same FLOPs: it saves work, not memory",
    "static": "the control of SET and RigL: the same zeros, never moved; no dense gradient, ever",
    "SET": "sparse from the first step, without any dense gradient",
    "RigL": "sparse from the first step, with a dense gradient now and then",
    "gradual": "dense at first, then ever sparser: simple, and hard to beat in papers",
    "Wanda": "pruning a trained model within seconds, without its gradients",
    "SparseGPT": "the same with a least-squares update of what stays, for more arithmetic",
    "2:4": "the one pattern of zeros that common hardware skips",
    "neurons": "smaller matrices: it saves time on any machine, in NumPy as well",
    "upcycled": "a trained dense model made an MoE: more parameters and FLOPs, without starting anew",
}
"""Family -> what it is for."""


def experiment(quick, seeds, vocab_size):
    """The Experiment and its Plan, or the quick ones, which are far too short to compare anything."""
    planned = sparse_plan.plan(*preset("sparsity-quick" if quick else "sparsity", {"vocab_size": vocab_size}))
    folder = Path("runs/sparsity-quick" if quick else "runs/sparsity")
    return Experiment("sparsity", "which way to be sparse saves what?", planned.variants, seeds, folder, measure,
                      archive=(folder if quick else archive.WRITTEN) / "sparsity.npz",
                      figure=folder / "figures" if quick else Path("figures")), planned


def measure(state, corpus):
    """What is kept of one run.

    ce: validation loss, nats per token.   begin: that at step 0 of a run that starts from a trained one, else NaN.
    steps; seconds: of all steps.   kept: parameters.   flops: forward, per token, zeros skipped; numpy: with the zeros.
    bytes, encoding: of the weights in the smallest encoding.
    """
    found, history = sparse.record(state.masks, state.model_config), state.history
    encoding = min(found["bytes"], key=found["bytes"].get)
    return {"ce": history["eval_ce"][-1], "begin": history["eval_ce"][0] if history["eval_step"][0] == 0 else np.nan,
            "steps": state.step, "seconds": np.sum(history["seconds"]), "kept": found["parameters"]["kept"],
            "flops": found["forward_flops_per_token"]["ideal"], "numpy": found["forward_flops_per_token"]["numpy"],
            "bytes": found["bytes"][encoding], "encoding": encoding}


class Entry(NamedTuple):
    """One model: its label, and what `measure` has found, one entry per seed."""

    label: str
    ce: np.ndarray
    begin: np.ndarray
    steps: np.ndarray
    seconds: np.ndarray
    kept: np.ndarray
    flops: np.ndarray
    numpy: np.ndarray
    bytes: np.ndarray
    encoding: np.ndarray

    @property
    def family(self):
        """The way to be sparse; all dense models are one family, the smaller ones."""
        return SMALLER if self.label == DENSE else self.label.partition(",")[0]


def main(quick=False, seeds=3, fresh=False, processes=1, say=terminal.say):
    """Train what is not trained yet, print the table and the verdict, draw the two pictures.

    quick: the small version.  seeds: runs of each.  fresh: train again what is there.  processes: runs that train at
    the same time.   say: prints.
    """
    corpus = data.embedded_corpus()
    comparison, planned = experiment(quick, seeds, len(corpus.tokenizer))
    say(terminal.fill(f"Training {len(planned.variants)} models, each for {quantities.short(planned.budget)} FLOPs, "
                      "counted by the papers' formulas for a machine that skips zeros.\n"
                      "Interrupt when you like: the same command resumes.\n"))
    with executors.side_by_side(processes) as executor:
        found = engine.run(comparison, corpus, fresh, say=say, executor=executor,
                           ended=wording.each_loss(say, lambda measured: measured["ce"]))
    entries = [Entry(label, **measured) for label, measured in found.measured.items()]
    if len(entries) == len(planned.variants):
        say("\n" + table(entries))
    found.require_all()
    archive.write(comparison.archive, found.measured)
    _draw(comparison.figure, kept(comparison.archive.parent), "Far too short to compare. " * quick)
    say(f"\nPictures: {', '.join(str(path) for path in pictures(comparison.figure))}\n")
    say(wording.too_short(comparison.variants[DENSE].train.n_steps) if quick else verdict(entries))


def kept(folder=archive.FOLDER):
    """The Entries of the last comparison, from what was kept of it.  Raises ValueError if nothing was."""
    return [Entry(label, **measured) for label, measured in archive.read("sparsity", folder).items()]


def figure(say=terminal.say):
    """Draw the pictures again from what was kept of the last comparison, if anything was."""
    if not (archive.FOLDER / "sparsity.npz").exists():
        say(terminal.fill("the pictures of `sparsity` are left as they are: `python -m minimoe sparsity` trains what "
                          "they show"))
        return
    _draw(Path("figures"), kept())
    say(f"wrote {', '.join(str(path) for path in pictures(Path('figures')))}")


def pictures(folder):
    """The paths of the two pictures."""
    return [folder / "sparsity-flops.png", folder / "sparsity-bytes.png"]


COSTS = {"flops": "inference FLOPs per token, zeros skipped", "bytes": "bytes of the weights, in the best encoding"}
"""Field of an Entry -> its words: what the losses are held against."""


def _draw(folder, entries, remark=""):
    shown = [entry for entry in entries if entry.label != SOURCE]
    for path, (field, words) in zip(pictures(folder), COSTS.items(), strict=True):
        ahead = sum((gap(entry, entries, field) < 0).all() for entry in shown if entry.family != SMALLER)
        compared = sum(entry.family != SMALLER for entry in shown)
        title = (f"{remark}At equal {words.split(' per ')[0].split(' of ')[0]}, {ahead} of {compared} sparse models "
                 "beat a smaller dense one in every seed")
        families = {}
        for entry in shown:
            families.setdefault(entry.family, []).append((getattr(entry, field).mean(), entry.ce))
        figures.save(sparsity_comparison.losses(families, SMALLER, words, title), path)


def gap(entry, entries, field):
    """Loss above that of a dense model which costs as much: one number per seed.

    The losses of the dense models are joined by lines over the logarithm of the cost; beyond the largest of them it is
    that one's loss, beyond the smallest that one's.   field: of COSTS.
    """
    family = sorted((other for other in entries if other.family == SMALLER), key=lambda other: getattr(other, field)[0])
    cost = np.log([getattr(other, field)[0] for other in family])
    dense = [np.interp(np.log(own), cost, losses) for own, losses in
             zip(getattr(entry, field), np.transpose([other.ce for other in family]), strict=True)]
    return entry.ce - dense


def table(entries):
    """The comparison as text."""
    rows = [("model", "steps", "seconds", "NumPy work", "parameters", "FLOPs/token", "bytes", "encoding",
             "before recovery", "validation loss", "at equal FLOPs", "at equal bytes")]
    whole = next(entry for entry in entries if entry.label == DENSE)
    budget = (whole.steps * whole.numpy).mean()
    source = next(entry for entry in entries if entry.label == SOURCE)
    for e in entries:
        begun = np.isfinite(e.begin).all()
        work = ((e.steps * e.numpy).mean() + begun * (source.steps * source.numpy).mean()) / budget
        gaps = [f"{gap(e, entries, field).mean():+.3f}" if e.family != SMALLER and e.label != SOURCE else ""
                for field in COSTS]
        rows.append((e.label, f"{e.steps[0]:,.0f}", f"{e.seconds.mean():.3g}", f"{work:.2f}",
                     *(quantities.short(number.mean()) for number in (e.kept, e.flops, e.bytes)),
                     e.encoding[0], f"{e.begin.mean():.3f}" if begun else "", wording.mean_and_spread(e.ce), *gaps))
    return "\n".join([terminal.table(rows, left=(0, 7)), "", *map(terminal.fill, NOTES)])


NOTES = (
    "NumPy work: FLOPs of training with the zeros, by which NumPy multiplies, over those of the dense run; the dense "
    "model that a pruned or upcycled one begins with is included here, and not in seconds",
    "parameters, FLOPs/token, bytes: of inference; without zeros, which only some machines can skip; in the smallest "
    "encoding",
    "before recovery: loss of what begins with the dense model, before any further step",
    "at equal FLOPs, at equal bytes: loss above that of a dense model of the same cost, on lines between the dense "
    "ones; below 0 is better",
)


def verdict(entries):
    """What the numbers show, in words: what each way is good for, and where a smaller dense model is better."""
    families = {}
    for entry in entries:
        if entry.family != SMALLER and entry.label != SOURCE:
            families.setdefault(entry.family, []).append(entry)
    lines = [" ".join(_ahead(field, families, entries) for field in COSTS)]
    lines += [f"{family}: {USES[family]}. {' '.join(_judged(field, group, entries) for field in COSTS)}"
              for family, group in families.items()]
    dense = [f"{e.label} {e.ce.mean():.3f}" for e in entries if e.family == SMALLER]
    lines.append(f"Dense models for the same training FLOPs: {'; '.join(dense)} nats per token.")
    lines.append("A mask saves bytes, and FLOPs where a machine skips zeros. NumPy does not, nor do most machines: "
                 "there it takes as long as a dense model, and only fewer neurons or a smaller dense model save time.")
    lines.append(f"What is pruned or upcycled has spent {sparse_plan.SOURCE_SHARE:.0%} of its FLOPs on the dense model "
                 "before, and has few steps left to recover in.")
    lines.append("One small model, few steps, one recipe for all, chosen on the dense model. "
                 f"{wording.on_seeds(len(entries[0].ce))}")
    return wording.bullets("What the numbers show", lines)


WORDS = {"flops": "FLOPs", "bytes": "bytes"}


def _ahead(field, families, entries):
    """Which models are better than a dense one of the same cost in all seeds."""
    ahead = [entry.label for group in families.values() for entry in group if (gap(entry, entries, field) < 0).all()]
    return f"Better than a dense model of as many {WORDS[field]} in all seeds: {'; '.join(ahead) or 'none'}."


def _judged(field, group, entries):
    """Where a family is better or worse than a dense model of the same cost, in all seeds; else they do not agree."""
    sides = {"better": [], "worse": [], "undecided": []}
    largest = max(getattr(entry, field).mean() for entry in entries if entry.family == SMALLER)
    for entry in group:
        own = gap(entry, entries, field)
        side = "better" if (own < 0).all() else "worse" if (own > 0).all() else "undecided"
        more = getattr(entry, field).mean() / largest
        beyond = f", with {more:.1f} times the {WORDS[field]} of the largest" if more > 1.05 else ""
        sides[side].append(f"{entry.label.partition(', ')[2]} ({own.mean():+.3f}{beyond})")
    found = [f"{side} at {', '.join(places)}" for side, places in sides.items() if places]
    return f"Against a dense model of as many {WORDS[field]}: {'; '.join(found)}."
