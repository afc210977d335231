"""The tour: a MoE and two dense models on the same text, what each costs, and where the tokens went.

The dense models bracket the MoE: one has as many parameters as the MoE uses for a token (active), one has as many as
the MoE has in all (total).  Same data, same steps, same seeds.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minimoe import cost, model
from minimoe.config import ModelConfig, TrainConfig, preset
from minimoe.config.variants import DENSE_ACTIVE, DENSE_TOTAL, MOE
from minimoe.experiments import wording
from minimoe.generation import sampling
from minimoe.moe import telemetry
from minimoe.plots import coloured_text, expert_load, figures, loss_curves
from minimoe.training import corpus, data, loop, record, runs

FOLDERS = {MOE: "moe", DENSE_ACTIVE: "dense-active", DENSE_TOTAL: "dense-total"}


@dataclass(frozen=True)
class Plan:
    """What a tour trains, and where it puts what it makes."""

    moe: ModelConfig
    training: TrainConfig
    seeds: int
    runs: Path
    figures: Path

    def configs(self):
        """Name -> ModelConfig of the three models."""
        dense = replace(self.moe, n_experts=1, top_k=1)
        return {
            MOE: self.moe,
            DENSE_ACTIVE: replace(dense, d_hidden=self.moe.top_k * self.moe.d_hidden),
            DENSE_TOTAL: replace(dense, d_hidden=self.moe.n_experts * self.moe.d_hidden),
        }

    def path(self, name, seed):
        """Where the checkpoint of a model and seed is."""
        return self.runs / FOLDERS[name] / f"seed{seed}" / "checkpoint.npz"


def plan(quick, seeds, vocab_size):
    """The full tour, or the quick one that shows the same in seconds on a smaller model."""
    moe, training = preset("tour-quick" if quick else "tour", {"vocab_size": vocab_size})
    if quick:
        return Plan(moe, training, seeds, Path("runs/quick"), Path("runs/quick/figures"))
    return Plan(moe, training, seeds, Path("runs/tour"), Path("figures"))


def main(quick=False, seeds=1, fresh=False, threads=1, say=print):
    """Train what is not trained yet, draw the figures, print the table, a sample and the verdict.

    quick: the small version.  seeds: runs of each model.  fresh: train again what is there.  threads: see `loop.train`.
    say: prints.
    """
    text = data.build(corpus.embedded(), TrainConfig().sequence)
    tour = plan(quick, seeds, len(text.tokenizer))
    lengths = ", ".join(f"{name} {len(train) + len(held):,} characters"
                        for name, train, held in zip(text.domains, text.train, text.held_out, strict=True))
    say(f"Training a Mixture of Experts and two dense models on {lengths}.\n"
        f"{DENSE_ACTIVE}: as many parameters as the MoE uses for one token.  {DENSE_TOTAL}: as many as it has in all.\n"
        f"Interrupt when you like: the same command goes on from there.\n")
    states = {name: [_train(tour, name, config, seed, text, fresh, say, threads) for seed in range(seeds)]
              for name, config in tour.configs().items()}
    results = {name: measure(of_seeds, text) for name, of_seeds in states.items()}
    draw(tour, states, results, text)
    say("\n" + table(results))
    say(f"\nPictures: {', '.join(str(tour.figures / f'{name}.png') for name in FIGURES)}")
    say("\nA sample from the MoE, which began with 'The ':\n")
    say(_indent(sample(states[MOE][0])))
    say("\n" + verdict(results))
    say("\n" + record.describe_routers(states[MOE][0].history, tour.moe.moe_layers))
    run = tour.path(MOE, 0).parent.as_posix()
    say(f"\nLook at its decisions:  python -m minimoe route 'def main():' --run {run}\n"
        f"Write more with it:     python -m minimoe generate --run {run}")


def draw_again(say=print):
    """Draw the figures again from the runs of the full tour.  Returns whether there are any."""
    text = data.build(corpus.embedded(), TrainConfig().sequence)
    tour = plan(False, 1, len(text.tokenizer))
    seeds = len(list((tour.runs / FOLDERS[MOE]).glob("seed*")))
    paths = {name: [tour.path(name, seed) for seed in range(max(seeds, 1))] for name in FOLDERS}
    if not paths[MOE][0].exists():
        return False
    states = {name: [runs.finished(path, tour.configs()[name], replace(tour.training, seed=seed), text,
                                   "python -m minimoe") for seed, path in enumerate(of_seeds)]
              for name, of_seeds in paths.items()}
    draw(tour, states, {name: measure(of_seeds, text) for name, of_seeds in states.items()}, text)
    say(f"wrote {', '.join(str(tour.figures / f'{name}.png') for name in FIGURES)}")
    return True


def _train(tour, name, config, seed, text, fresh, say, threads):
    label = name if tour.seeds == 1 else f"{name}, seed {seed}"
    return runs.finish(tour.path(name, seed), label, config, replace(tour.training, seed=seed), text, fresh, say,
                       threads)


def sample(state, n_tokens=300):
    """Text from a trained model, after 'The '."""
    prompt_S = state.tokenizer.encode("The ")
    tokens_S = sampling.generate(state.params, state.model_config, prompt_S, n_tokens, temperature=0.8)
    return state.tokenizer.decode(tokens_S)


FIGURES = ("losses", "load", "text", "domains")


def draw(tour, states, results, text):
    """Write the four figures: the losses of all models, and what the router of the first MoE did."""
    first = states[MOE][0]
    by_domain = np.array(first.history["eval_load"][-1])
    layer, moved = _most_divided_layer(by_domain)
    english, python = text.domains[:2]
    pictures = {
        "losses": loss_curves.losses(_curves(tour, states, results), _title(tour, results)),
        "load": expert_load.load_over_time(*_load(first), "Expert load while training: the busiest, expert {1} of "
                                           "layer {0}, ends with {2:.1f}x an even share".format(*_busiest(first))),
        "text": coloured_text.coloured_text(_route_pieces(first, text, layer), first.model_config.n_experts,
                                    f"Each character on the colour of the first of its experts, layer {layer}"),
        "domains": expert_load.load_by_domain(by_domain, text.domains, f"{english} and {python} share out the experts "
                                        f"differently: most in layer {layer}, by {moved:.0%} of the load"),
    }
    for name, figure in pictures.items():
        figures.save(figure, tour.figures / f"{name}.png")


def _title(tour, results):
    reached = "; ".join(f"{name} {r.ce.mean():.3f}" for name, r in results.items())
    return f"After {tour.training.n_steps} steps: {reached}"


def _curves(tour, states, results):
    """Name -> (steps, training FLOPs, losses of each seed)."""
    tokens = tour.training.batch * tour.training.sequence * tour.training.accumulate
    curves = {}
    for name, of_seeds in states.items():
        steps = np.array(of_seeds[0].history["eval_step"])
        curves[name] = (steps, steps * tokens * results[name].training_flops,
                        np.array([state.history["eval_ce"] for state in of_seeds]))
    return curves


def _load(state):
    return np.array(state.history["router_step"]), np.array(state.history["router_load"])


def _busiest(state):
    """Layer and number of the busiest expert over the last records, and its load in multiples of an even share."""
    load_LE = _load(state)[1][-10:].mean(axis=0)
    layer, expert = np.unravel_index(load_LE.argmax(), load_LE.shape)
    return layer, expert, load_LE.max() * load_LE.shape[1]


def _most_divided_layer(by_domain):
    """The layer in which two domains use the experts most differently, and the share of assignments that differs."""
    differ_L = np.abs(by_domain[0] - by_domain[1]).sum(axis=1) / 2
    return int(differ_L.argmax()), differ_L.max()


def _route_pieces(state, text, layer, n_contexts=5):
    """A held-out paragraph or two of each domain, with the expert of first choice of each character."""
    pieces = []
    line_break = state.tokenizer.characters.index("\n")
    for domain, stream in zip(text.domains, text.held_out, strict=True):
        breaks = stream == line_break
        start = np.flatnonzero(breaks[:-2] & breaks[1:-1] & ~breaks[2:])[0] + 2  # a paragraph, from its beginning
        tokens_S = stream[start:start + state.model_config.max_sequence * n_contexts]
        tokens_BS = tokens_S.reshape(n_contexts, -1)
        _, routings = model.forward(state.params, tokens_BS, state.model_config)
        experts = telemetry.first_choice(routings[layer])
        pieces.append((f"{domain}, held out", state.tokenizer.decode(tokens_S), experts))
    return pieces


def _indent(text):
    return "\n".join("    " + line for line in text.split("\n"))


@dataclass(frozen=True)
class Result:
    """What one model cost and reached.  ce, drop, balance: one entry a seed.  seconds: median step.  peak: bytes."""

    parameters: cost.Parameters
    forward_flops: float
    training_flops: float
    seconds: float
    memory: cost.Memory
    peak: int
    ce: np.ndarray
    drop: np.ndarray
    balance: np.ndarray


def measure(states, text):
    """The Result of one model's runs, one a seed."""
    config, training = states[0].model_config, states[0].train_config
    counted = cost.count(config, training.batch, training.sequence)
    peak = cost.peak_bytes(lambda: loop.step_once(loop.new_state(config, training, text), text))
    history = [state.history for state in states]
    return Result(
        parameters=counted.parameters, forward_flops=counted.forward_flops_per_token,
        training_flops=counted.training_flops_per_token, seconds=float(np.median([h["seconds"] for h in history])),
        memory=cost.step_memory(config, training.batch, training.sequence), peak=peak,
        ce=np.array([h["eval_ce"][-1] for h in history]), drop=np.array([np.mean(h["drop"]) for h in history]),
        balance=np.array([np.mean(h["balance"][-50:]) for h in history]))


def table(results):
    """The comparison as text, one row a model."""
    head = ("", "parameters", "active", "FLOPs/token", "s/step", "peak memory", "validation loss", "dropped", "balance")
    rows = [head] + [(
        name, f"{r.parameters.total:,}", f"{r.parameters.active:,}", f"{r.forward_flops / 1e6:.3f} M",
        f"{r.seconds:.3f}", f"{r.peak / 2**20:.0f} MiB", wording.mean_and_spread(r.ce), f"{r.drop.mean():.1%}",
        f"{r.balance.mean():.3f}" if name == MOE else "-") for name, r in results.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in
                       enumerate(zip(row, widths, strict=True))) for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    lines += ["FLOPs: forward, counted from the matrix products that ran.  s/step: median.  peak memory: most that the "
              "arrays of one training step took at once.", "validation loss: nats per token on held-out text, "
              "cross-entropy alone.  dropped: while training.  balance: 1 is an even load."]
    memory = results[MOE].memory
    lines.append("of the MoE's peak: " + ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in
                                                   memory._asdict().items()) + " (kept for the backward); the rest "
                 "comes and goes")
    return "\n".join(lines)


def verdict(results):
    """What the numbers show, in words, for or against the MoE."""
    moe, active, total = results[MOE], results[DENSE_ACTIVE], results[DENSE_TOTAL]
    return "\n".join([
        "What the numbers show",
        f"- The MoE uses {moe.parameters.active / moe.parameters.total:.0%} of its parameters for a token. Its forward "
        f"pass takes {total.forward_flops / moe.forward_flops:.1f}x fewer FLOPs than that of the dense model of equal "
        f"size; its step takes {moe.seconds / total.seconds:.2f}x the time. Routing, gathering rows and the optimiser, "
        f"which steps all parameters, cost time that FLOPs do not count.",
        f"- Against the dense model that does the same work per token, it has "
        f"{moe.parameters.total / active.parameters.total:.1f}x the parameters, its step takes "
        f"{moe.seconds / active.seconds:.1f}x the time and {moe.peak / active.peak:.1f}x the memory; its loss is "
        f"{_gap(moe, active)}.",
        f"- Against the dense model with all its parameters, its loss is {_gap(moe, total)}.",
        "- All three share one recipe and few steps: a dense model with a recipe of its own, or a longer run, may do "
        "better.",
        "- " + wording.on_seeds(len(moe.ce)),
    ])


def _gap(moe, dense):
    """How the losses differ, and in how many seeds they differ that way; runs of one seed saw the same data."""
    lower_by = dense.ce - moe.ce
    gap = lower_by.mean()
    words = f"{abs(gap):.3f} nats {'lower' if gap > 0 else 'higher'}"
    return words if len(lower_by) == 1 else f"{words}, and so in {(lower_by * gap > 0).sum()} of {len(lower_by)} seeds"
