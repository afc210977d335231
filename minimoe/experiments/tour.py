"""The tour: an MoE and two dense models on the same text, their costs, and where the tokens went.

The dense models bracket the MoE: one has as many parameters as the MoE uses for one token (active), one has as many as
the MoE has in all (total).  Same data, same steps, same seeds.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minimoe import cost, model, terminal
from minimoe.config import preset, variants
from minimoe.config.variants import DENSE_ACTIVE, DENSE_TOTAL, MOE
from minimoe.experiments import engine, wording
from minimoe.experiments.engine import Experiment, Variant
from minimoe.generation import sampling
from minimoe.moe import telemetry
from minimoe.plots import coloured_text, expert_load, figures, loss_curves
from minimoe.training import data, evaluation, loop, record, runs

COMMAND = "python -m minimoe"

FIGURES = ("losses", "load", "text", "domains")


def experiment(quick, seeds, vocab_size):
    """The full tour, or the quick one, which shows the same in seconds with a smaller model."""
    moe, training = preset("tour-quick" if quick else "tour", {"vocab_size": vocab_size})
    models = {
        MOE: Variant(moe, training, "moe"),
        DENSE_ACTIVE: Variant(variants.dense(moe, variants.active_width(moe)), training, "dense-active"),
        DENSE_TOTAL: Variant(variants.dense(moe, variants.total_width(moe)), training, "dense-total"),
    }
    folder = Path("runs/quick" if quick else "runs/tour")
    return Experiment("tour", "what does an MoE cost, and what does it reach?", models, seeds, folder, measure,
                      figure=folder / "figures" if quick else Path("figures"))


def main(quick=False, seeds=1, fresh=False, threads=1, say=terminal.say):
    """Train what is not trained yet; show what the MoE does as early as possible, then the comparison.

    quick: the small version.  seeds: runs of each model.  fresh: train again what is there.  threads: see `loop.train`.
    say: prints.
    """
    corpus = data.embedded_corpus()
    tour = experiment(quick, seeds, len(corpus.tokenizer))
    lengths = ", ".join(f"{name} {len(train) + len(held):,} characters"
                        for name, train, held in zip(corpus.domains, corpus.train, corpus.held_out, strict=True))
    n_steps = tour.variants[MOE].train.n_steps
    say(terminal.fill("\n".join([
        f"Training a Mixture of Experts (MoE), then two dense models, {n_steps} steps each, on {lengths}.",
        f"{DENSE_ACTIVE}: as many parameters as the MoE uses per token.  {DENSE_TOTAL}: as many as it has in all.",
        *[wording.too_short(n_steps)] * quick, "Interrupt when you like: the same command resumes.\n"])))
    each_loss = wording.each_loss(say, lambda measured: measured["ce"])

    def ended(cell, measured, left):
        each_loss(cell, measured, left)
        if (cell.label, cell.seed) == (MOE, 0):
            show_moe(tour, runs.load(cell.folder), corpus, say)

    found = engine.run(tour, corpus, fresh, threads, say, ended=ended)
    found.require_all()
    results = {label: priced(tour.variants[label], measured, corpus) for label, measured in found.measured.items()}
    short = f"{wording.too_short(n_steps)} `{COMMAND}` is the tour."
    say("\n" + (terminal.fill(short) if quick else verdict(results)))
    say(f"\nThe models after {n_steps} steps:\n\n{table(results)}")
    draw_losses(tour, found.measured)
    say(terminal.fill(f"\nPicture: {pictures(tour)[0]}"))


def show_moe(tour, state, corpus, say):
    """What the MoE's routers did, in words and pictures, and its text, while the dense models still train."""
    say(f"\n{record.describe_routers(state.history, state.model_config.moe_layers)}")
    say(f"\nWhat it writes after 'The ':\n\n{_indent(sample(state))}\n")
    draw_router(tour, state, corpus)
    say(terminal.fill(f"Its pictures: {', '.join(map(str, pictures(tour)[1:]))}", hanging="  "))
    run = ["--run", tour.cells(MOE)[0].folder.as_posix()]
    say(f"Look at its decisions:\n  {terminal.command('route', 'def main():', *run)}\n"
        f"Let it write more:\n  {terminal.command('generate', *run)}\n")


def draw_again(say=terminal.say):
    """Draw the figures again from the runs of the full tour.  Returns whether there are any."""
    corpus = data.embedded_corpus()
    tour = experiment(False, 1, len(corpus.tokenizer))
    seeds = runs.count_seeds(tour.folder / tour.variants[MOE].folder)
    if seeds == 0:
        return False
    tour = replace(tour, seeds=seeds)
    measured = engine.measure_finished(tour, corpus, COMMAND)
    draw_losses(tour, measured)
    draw_router(tour, tour.states(MOE)[0], corpus)
    say(f"wrote {', '.join(str(path) for path in pictures(tour))}")
    return True


def pictures(tour):
    """The paths of the four pictures."""
    return [tour.figure / f"{name}.png" for name in FIGURES]


def sample(state, n_tokens=300):
    """Text from a trained model, after 'The '."""
    prompt_S = state.tokenizer.encode("The ")
    tokens_S = sampling.generate(state.params, state.model_config, prompt_S, n_tokens, temperature=0.8)
    return state.tokenizer.decode(tokens_S)


@dataclass(frozen=True)
class Result:
    """Costs and results of one model.  ce, drop, balance: one entry per seed.  seconds: median step.  peak: bytes.

    memory: its activations are those of one group, since the step that is measured runs one group after the other.
    """

    parameters: cost.Parameters
    forward_flops: float
    seconds: float
    memory: cost.Memory
    peak: int
    ce: np.ndarray
    drop: np.ndarray
    balance: np.ndarray


def measure(state, corpus):
    """Results of a run: loss (nats per token), share dropped, balance at the end, seconds of each step, the curve."""
    history = state.history
    return {"ce": history["eval_ce"][-1], "drop": np.mean(history["drop"]),
            "balance": np.mean(history["balance"][-50:]), "seconds": history["seconds"],
            "curve_step": history["eval_step"], "curve": history["eval_ce"]}


def priced(variant, measured, corpus):
    """The Result of one model: the results of its runs, and the cost of its training step."""
    config, training = variant.model, variant.train
    counted = cost.count(config, training.batch, training.sequence)
    peak = cost.peak_bytes(lambda: loop.step_once(loop.new_state(config, training, corpus), corpus))
    return Result(
        parameters=counted.parameters, forward_flops=counted.forward_flops_per_token,
        seconds=float(np.median(measured["seconds"])),
        memory=cost.step_memory(config, training.batch // training.groups, training.sequence), peak=peak,
        ce=measured["ce"], drop=measured["drop"], balance=measured["balance"])


def table(results):
    """The comparison as text, one column per model."""
    columns = [(
        name.replace(", ", ",\n"), f"{r.parameters.total:,}", f"{r.parameters.active:,}",
        f"{r.forward_flops / 1e6:.3f} M", f"{r.seconds:.3f}", f"{r.peak / 2**20:.0f} MiB",
        wording.mean_and_spread(r.ce), *((f"{r.drop.mean():.1%}", f"{r.balance.mean():.3f}") if name == MOE else "--"))
        for name, r in results.items()]
    measures = ("", "parameters", "active per token", "FLOPs per token", "seconds per step", "peak memory",
                "validation loss", "dropped", "balance")
    peak, *held = (size / 2**20 for size in (results[MOE].peak, *results[MOE].memory))
    parameters, gradients, moments, activations = held
    notes = ("FLOPs: forward, counted from the matrix products that ran.  seconds: median.  peak memory: the most that "
             "the arrays of one training step take together, one group of the batch after the other.",
             "validation loss: nats per token on held-out text, cross-entropy alone.  dropped: share of assignments in "
             "training.  balance: 1 is an even load.",
             f"Of the MoE's {peak:.1f} MiB: parameters {parameters:.1f}, gradients {gradients:.1f}, moments "
             f"{moments:.1f}, activations that wait for the backward pass {activations:.1f}, and "
             f"{peak - sum(held):.1f} that come and go.")
    return "\n".join([terminal.table(list(zip(measures, *columns, strict=True))), "", *map(terminal.fill, notes)])


def verdict(results):
    """What the numbers show, in words, for or against the MoE."""
    moe, active, total = results[MOE], results[DENSE_ACTIVE], results[DENSE_TOTAL]
    return wording.bullets("What the numbers show", [
        f"The MoE uses {moe.parameters.active / moe.parameters.total:.0%} of its parameters per token. Its forward "
        f"pass takes {total.forward_flops / moe.forward_flops:.1f}x fewer FLOPs than that of the dense model of equal "
        f"size; its step takes {moe.seconds / total.seconds:.2f}x the time. Routing, gathering rows and the optimizer, "
        f"which steps all parameters, cost time that FLOPs do not count.",
        f"Compared with the dense model that does the same work per token, it has "
        f"{moe.parameters.total / active.parameters.total:.1f}x the parameters, its step takes "
        f"{moe.seconds / active.seconds:.1f}x the time and {moe.peak / active.peak:.1f}x the memory; its loss is "
        f"{_gap(moe, active)}.",
        f"Compared with the dense model with all its parameters, its loss is {_gap(moe, total)}.",
        "All three share one recipe and few steps: a dense model with a recipe of its own, or a longer run, may do "
        "better.",
        wording.on_seeds(len(moe.ce)),
    ])


def _gap(moe, dense):
    """How the losses differ, and in how many seeds in that direction; runs with the same seed saw the same data."""
    lower_by = dense.ce - moe.ce
    gap = lower_by.mean()
    words = f"{abs(gap):.3f} nats {'lower' if gap > 0 else 'higher'}"
    return words if len(lower_by) == 1 else f"{words}, and so in {(lower_by * gap > 0).sum()} of {len(lower_by)} seeds"


def draw_losses(tour, measured):
    """Write the figure of the losses of all models, step by step: at equal FLOPs, schedules would be cut in the middle.
    """
    curves = {name: (of_label["curve_step"][0], of_label["curve"]) for name, of_label in measured.items()}
    reached = "; ".join(f"{name} {of_label['ce'].mean():.3f}" for name, of_label in measured.items())
    title = f"After {tour.variants[MOE].train.n_steps} steps: {reached}"
    figures.save(loss_curves.losses(curves, title), pictures(tour)[0])


def draw_router(tour, first, corpus):
    """Write the three figures about the routers of the first MoE.  The control is the same model before training."""
    by_domain, untrained = np.array(first.history["eval_load"][-1]), _load_untrained(first, corpus)
    layer, moved = _most_divided_layer(by_domain)
    _, control = _most_divided_layer(untrained)
    english, python = corpus.domains[:2]
    drawn = {
        "load": expert_load.load_over_time(*_load(first), "Expert load during training: expert {1} in layer {0} ends "
                                           "with {2:.1f}x an even share, the most".format(*_busiest(first))),
        "text": coloured_text.coloured_text(_route_pieces(first, corpus, layer), first.model_config.n_experts,
                                            f"Each character has the color of its first-choice expert, layer {layer}; "
                                            "untrained routers color text, too"),
        "domains": expert_load.load_by_domain({"untrained": untrained, "trained": by_domain}, corpus.domains,
                                              f"{english.capitalize()} and {python.capitalize()}, trained: {moved:.0%} "
                                              f"of the load differs, most in layer {layer}; untrained {control:.0%}"),
    }
    for name, figure in drawn.items():
        figures.save(figure, tour.figure / f"{name}.png")


def _load(state):
    return np.array(state.history["router_step"]), np.array(state.history["router_load"])


def _load_untrained(state, corpus):
    """Each domain's load, [domains, L, E], before the first step: what the run's routers did with the same text."""
    start = loop.new_state(state.model_config, state.train_config, corpus)
    return evaluation.evaluate(start.params, corpus, start.model_config, start.train_config)["load"]


def _busiest(state):
    """Layer and number of the busiest expert over the last records, and its load in multiples of an even share."""
    load_LE = _load(state)[1][-10:].mean(axis=0)
    layer, expert = np.unravel_index(load_LE.argmax(), load_LE.shape)
    return layer, expert, load_LE.max() * load_LE.shape[1]


def _most_divided_layer(by_domain):
    """The layer in which two domains use the experts most differently, and the share of differing assignments."""
    differ_L = np.abs(by_domain[0] - by_domain[1]).sum(axis=1) / 2
    return int(differ_L.argmax()), differ_L.max()


def _route_pieces(state, corpus, layer, n_contexts=5):
    """One or two held-out paragraphs of each domain, with the first-choice expert of each character."""
    pieces = []
    line_break = state.tokenizer.characters.index("\n")
    for domain, stream in zip(corpus.domains, corpus.held_out, strict=True):
        breaks = stream == line_break
        start = np.flatnonzero(breaks[:-2] & breaks[1:-1] & ~breaks[2:])[0] + 2  # a paragraph, from its beginning
        tokens_S = stream[start:start + state.model_config.max_sequence * n_contexts]
        tokens_BS = tokens_S.reshape(n_contexts, -1)
        _, routings = model.forward(state.params, tokens_BS, state.model_config)
        experts = telemetry.first_choice(routings[layer])
        pieces.append((f"{domain}, held out", state.tokenizer.decode(tokens_S), experts))
    return pieces


def _indent(text):
    room = terminal.width() - 4
    parts = [line[i:i + room] for line in text.split("\n") for i in range(0, max(len(line), 1), room)]
    return "\n".join("    " + part for part in parts)
