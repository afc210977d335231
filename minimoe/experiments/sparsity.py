"""Kinds of sparsity compared with smaller dense models, all trained for the same FLOPs: see `sparse_plan`."""

from pathlib import Path

import numpy as np

from minimoe import terminal
from minimoe.config import preset
from minimoe.cost import quantities, sparse
from minimoe.experiments import archive, engine, executors, sparse_plan, sparse_report, wording
from minimoe.experiments.engine import Experiment
from minimoe.experiments.sparse_plan import DENSE, SMALLER
from minimoe.experiments.sparse_report import Entry
from minimoe.plots import figures, sparsity_comparison
from minimoe.training import data


def experiment(quick, seeds, vocab_size):
    """The Experiment and its Plan, or the quick ones, which are far too short to compare anything."""
    planned = sparse_plan.plan(*preset("sparsity-quick" if quick else "sparsity", {"vocab_size": vocab_size}))
    folder = Path("runs/sparsity-quick" if quick else "runs/sparsity")
    return Experiment("sparsity", "what does each kind of sparsity save?", planned.variants, seeds, folder, measure,
                      archive=(folder if quick else archive.WRITTEN) / "sparsity.npz",
                      figure=folder / "figures" if quick else Path("figures")), planned


def measure(state, corpus):
    """The stored results of one run.

    ce: validation loss, nats per token.   begin: the loss at step 0 of a run that starts from a trained one, or NaN.
    steps; seconds: of all steps.   kept: parameters.   flops: forward, per token, zeros skipped; numpy: with zeros.
    bytes, encoding: of the weights in the smallest encoding.
    """
    found, history = sparse.record(state.masks, state.model_config), state.history
    encoding = min(found["bytes"], key=found["bytes"].get)
    return {"ce": history["eval_ce"][-1], "begin": history["eval_ce"][0] if history["eval_step"][0] == 0 else np.nan,
            "steps": state.step, "seconds": np.sum(history["seconds"]), "kept": found["parameters"]["kept"],
            "flops": found["forward_flops_per_token"]["ideal"], "numpy": found["forward_flops_per_token"]["numpy"],
            "bytes": found["bytes"][encoding], "encoding": encoding}


def main(quick=False, seeds=3, fresh=False, processes=1, say=terminal.say, detail=False):
    """Train what is not trained yet, print what was found, draw the two pictures.

    quick: the small version.  seeds: runs of each.  fresh: train again what is there.  processes: runs that train at
    the same time.   say: prints.   detail: prints what the training took as well.
    """
    corpus = data.embedded_corpus()
    comparison, planned = experiment(quick, seeds, len(corpus.tokenizer))
    say(terminal.fill(f"Training {len(planned.variants)} models, each for {quantities.short(planned.budget)} FLOPs, "
                      "counted by the papers' formulas for a machine that skips zeros.\n"
                      "Interrupt when you like: the same command resumes.\n"))
    each_loss = wording.each_loss(lambda line: say(terminal.fill(line, hanging="  ")), lambda measured: measured["ce"])
    with executors.side_by_side(processes) as executor:
        found = engine.run(comparison, corpus, fresh, say=say, executor=executor, ended=each_loss)
    found.require_all()
    entries = [Entry(label, **measured) for label, measured in found.measured.items()]
    archive.write(comparison.archive, found.measured)
    _draw(comparison.figure, kept(comparison.archive.parent), "Far too short to compare. " * quick)
    too_short = wording.too_short(comparison.variants[DENSE].train.n_steps) if quick else None
    say(f"\n{report(entries, detail, too_short)}\n")
    say(terminal.fill(f"Pictures: {', '.join(map(str, pictures(comparison.figure)))}", hanging="  "))


def show(detail=False, say=terminal.say):
    """Print the last comparison again from what was kept of it.  Raises ValueError if nothing was."""
    say(report(kept(), detail))
    say(terminal.fill(f"\nPictures: {', '.join(map(str, pictures(Path('figures'))))}", hanging="  "))


def report(entries, detail=False, too_short=None):
    """The answer, the table, and what each way is good for, as text.

    detail: with what the training took.   too_short: said in place of an answer, if the runs were.
    """
    parts = [sparse_report.answer(entries) if too_short is None else too_short, sparse_report.table(entries)]
    parts += [sparse_report.uses(entries)] * (too_short is None)
    parts += [sparse_report.detail(entries)] if detail else []
    return "\n\n".join(parts)


def kept(folder=archive.FOLDER):
    """The Entries of the last comparison, from its stored results.  Raises ValueError if there are none."""
    return [Entry(label, **measured) for label, measured in archive.read("sparsity", folder).items()]


def figure(say=terminal.say):
    """Draw the pictures again from the stored results of the last comparison, if there are any."""
    if not (archive.FOLDER / "sparsity.npz").exists():
        say(terminal.fill("the pictures of `sparsity` are not changed: `python -m minimoe sparsity` trains the "
                          "models that they show"))
        return
    _draw(Path("figures"), kept())
    say(terminal.fill(f"wrote {', '.join(str(path) for path in pictures(Path('figures')))}", hanging="  "))


def pictures(folder):
    """The paths of the two pictures."""
    return [folder / f"sparsity-{field}.png" for field in WORDS]


WORDS = {"flops": "inference FLOPs per token, zeros skipped", "bytes": "bytes of the weights, in the best encoding"}
"""Field of an Entry -> its words at an axis."""


def picture(entries, field, remark=""):
    """The Figure of losses against a cost: one panel per family, and smaller dense models in each.

    field: of WORDS.   remark: before the title.
    """
    def points(group, better):
        return [sparsity_comparison.Point(e.level, getattr(e, field).mean(), e.ce, better(e)) for e in group]

    found = {family: points(group, lambda e: sparse_report.side(e, entries, field) == "better")
             for family, group in sparse_report.families(entries).items()}
    dense = points([e for e in entries if e.family == SMALLER], lambda e: False)
    ahead = sparse_report.named(entries, field, "better")
    title = (f"{remark}Better than a smaller dense model of as many {sparse_report.COSTS[field]}, in every seed: "
             f"{ahead}")
    return sparsity_comparison.losses(found, dense, WORDS[field], title)


def _draw(folder, entries, remark=""):
    for path, field in zip(pictures(folder), WORDS, strict=True):
        figures.save(picture(entries, field, remark), path)
