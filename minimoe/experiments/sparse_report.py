"""What the comparison of the ways to be sparse found, in words and tables: who beats a smaller dense model, and where.

A model is `better` than a smaller dense one of the same cost, or `worse`, only if it is so in every seed.
"""

from typing import NamedTuple

import numpy as np

from minimoe import terminal
from minimoe.cost import quantities
from minimoe.experiments import sparse_plan, wording
from minimoe.experiments.sparse_plan import DENSE, SMALLER, SOURCE

GOOD_FOR = {
    "MoE": "more parameters for the same FLOPs; all of them are in memory",
    "static": "sparse from the first step; the simplest way",
    "SET": "the same, and the zeros move; needs no dense gradient",
    "RigL": "the same, by the gradient; papers train it for long",
    "gradual": "dense at first, then ever sparser; simple",
    "Wanda": "pruning a trained model in seconds, without gradients",
    "SparseGPT": "the same; a least-squares update heals part of it",
    "2:4": "the one pattern of zeros that common GPUs skip",
    "neurons": "smaller matrices: saves time on any machine",
    "upcycled": "an MoE from a trained dense model, at a higher cost",
}
"""Family -> what it is for."""

COSTS = {"flops": "FLOPs", "bytes": "bytes"}
"""Field of an Entry -> its word: what the losses are held against."""


class Entry(NamedTuple):
    """One model: its label, and what `sparsity.measure` has found, one entry per seed."""

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

    @property
    def level(self):
        """What tells it from others of its family, such as "50%"."""
        left, pattern, group = self.family.partition(":")
        return f"{1 - int(left) / int(group):.0%}" if pattern else self.label.partition(", ")[2]


def families(entries):
    """Family -> its Entries, of the models that are held against dense ones."""
    found = {}
    for entry in entries:
        if entry.family != SMALLER and entry.label != SOURCE:
            found.setdefault(entry.family, []).append(entry)
    return found


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


def side(entry, entries, field):
    """"better" or "worse" than a smaller dense model of the same cost in every seed; else "open"."""
    own = gap(entry, entries, field)
    return "better" if (own < 0).all() else "worse" if (own > 0).all() else "open"


def named(entries, field, which):
    """The models on one side, in words, such as "SET (50%, 75%), static (75%)"."""
    found = {family: [entry.level for entry in group if side(entry, entries, field) == which]
             for family, group in families(entries).items()}
    return ", ".join(f"{family} ({', '.join(levels)})" for family, levels in found.items() if levels) or "none"


def answer(entries):
    """The short answer: which models are better than a smaller dense one, and which are worse; and what to mind."""
    sides = {field: {which: named(entries, field, which) for which in ("better", "worse", "open")} for field in COSTS}
    same = sides["flops"] == sides["bytes"]
    lines = []
    for field in ("flops",) if same else COSTS:
        words = "FLOPs, or as many bytes" if same else COSTS[field]
        lines += [f"Compared with a smaller dense model of as many {words}:",
                  *(terminal.fill(f"{begin}: {sides[field][which]}", "  ", "    ") for which, begin in (
                      ("better", "better in every seed"), ("worse", "worse in every seed"),
                      ("open", "the seeds do not agree")))]
    return "\n".join([*lines, "", terminal.fill(steps(entries)), "", terminal.fill(
        "One small model, few steps, one recipe for all, chosen on the dense model. "
        + wording.on_seeds(len(entries[0].ce)))])


def steps(entries):
    """What must be known before the ranking is read: how many steps each had for the same FLOPs."""
    dense, *smaller = (entry for entry in entries if entry.family == SMALLER)
    words = "Mind the steps. All spend the same training FLOPs, so whatever is smaller or sparser takes more steps. "
    if all(dense.ce.mean() > other.ce.mean() for other in smaller):
        words += (f"The full dense model ({_count(dense)} steps, loss {dense.ce.mean():.3f}) is worse than each "
                  f"smaller one ({_span(smaller)} steps, {_losses(smaller)}): more steps helped more than more "
                  "weights. ")
    changed = [entry for entry in entries if np.isfinite(entry.begin).all()]
    source = next((entry for entry in entries if entry.label == SOURCE), None)
    if changed and source is not None:
        words += (f"What is pruned or upcycled has spent {sparse_plan.SOURCE_SHARE:.0%} of its FLOPs on the dense "
                  f"model before: {_count(source)} dense steps, and {_span(changed)} left to recover in. ")
    return words + "So the ranking shows this budget, not pruning as such."


def _count(entry):
    return f"{entry.steps[0]:,.0f}"


def _span(entries):
    found = [entry.steps[0] for entry in entries]
    return f"{min(found):,.0f} to {max(found):,.0f}"


def _losses(entries):
    found = [entry.ce.mean() for entry in entries]
    return f"{min(found):.3f} to {max(found):.3f}"


MARKS = {"better": "* ", "worse": "x ", "open": ""}


def table(entries):
    """The comparison as text: what each model costs and reaches, and its loss above a dense one of the same cost."""
    rows = [("model", "steps", "FLOPs", "bytes", "loss", "at equal\nFLOPs", "at equal\nbytes")]
    for e in entries:
        compared = e.family != SMALLER and e.label != SOURCE
        gaps = [f"{MARKS[side(e, entries, field)]}{gap(e, entries, field).mean():+.3f}" if compared else ""
                for field in COSTS]
        rows.append((e.label, _count(e), quantities.short(e.flops.mean()), quantities.short(e.bytes.mean()),
                     wording.mean_and_spread(e.ce), *gaps))
    return "\n".join([terminal.table(rows), "", *map(terminal.fill, NOTES)])


NOTES = (
    "at equal FLOPs, bytes: loss above that of a dense model of the same cost, on lines between the dense ones; "
    "*: better in every seed, x: worse in every seed. The MoE and the upcycled model have more bytes than any dense "
    "one, and are compared with the largest",
    "FLOPs: of a forward pass, per token, without zeros, which only some machines can skip. bytes: of the weights, in "
    "the smallest encoding. loss: validation, nats per token, mean and standard deviation of the seeds",
    "50%: of the weights of attention and FFN; of neurons, 50% of the FFN alone, so that more is left",
)


def uses(entries):
    """What each way is good for, and where it is better or worse than a smaller dense model, as a table."""
    rows = [("way", "good for", "better at", "worse at")]
    rows += [(family, GOOD_FOR[family], *(_levels(group, entries, which) for which in ("better", "worse")))
             for family, group in families(entries).items()]
    return "\n".join([terminal.table(rows, left=(0, 1, 2, 3)), "", *map(terminal.fill, (
        "better, worse: than a smaller dense model, in every seed, at equal FLOPs and at equal bytes, unless one is "
        "named",
        "A mask saves bytes, and FLOPs where a machine skips zeros. NumPy does not, nor do most machines: there a "
        "masked model takes as long as a dense one, and only fewer neurons or a smaller dense model save time."))])


def _levels(group, entries, which):
    """The levels of a family on one side."""
    found = []
    for entry in group:
        costs = [words for field, words in COSTS.items() if side(entry, entries, field) == which]
        if costs:
            found.append(entry.level if len(costs) == len(COSTS) else f"{entry.level} ({costs[0]})")
    return ", ".join(found) or "-"


def detail(entries):
    """What the training of each model took, and what it began with, as text."""
    rows = [("model", "seconds", "NumPy work", "parameters", "encoding", "before\nrecovery")]
    whole, source = (next(entry for entry in entries if entry.label == label) for label in (DENSE, SOURCE))
    budget = (whole.steps * whole.numpy).mean()
    for e in entries:
        begun = np.isfinite(e.begin).all()
        work = ((e.steps * e.numpy).mean() + begun * (source.steps * source.numpy).mean()) / budget
        rows.append((e.label, f"{e.seconds.mean():.3g}", f"{work:.2f}", quantities.short(e.kept.mean()), e.encoding[0],
                     f"{e.begin.mean():.3f}" if begun else ""))
    return "\n".join([terminal.table(rows, left=(0, 4)), "", *map(terminal.fill, (
        "NumPy work: FLOPs of training with the zeros, by which NumPy multiplies, over those of the dense run; the "
        "dense model that a pruned or upcycled one begins with is included here, and not in seconds",
        "parameters: that are not zero. before recovery: loss of what begins with the dense model, before any further "
        "step"))])
