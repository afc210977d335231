"""Commands that examine a trained run: the text that it generates, its routing, and whether it is healthy."""

import itertools
from dataclasses import replace
from pathlib import Path

from minimoe import terminal
from minimoe.cli import arguments, train
from minimoe.moe import capacity, routers

ONE_OF_THEM = "by naming its folder"


def add_generate(subparsers):
    """The command `generate` and its options."""
    parser = arguments.command(subparsers, "generate", run_generate, "write text with a trained model")
    arguments.add_run(parser)
    parser.add_argument("--prompt", help="the text to continue (default: 'The ', or any one character that "
                        "the model knows)")
    parser.add_argument("--n-tokens", type=int, default=500, metavar="N", help="characters to write (default: 500)")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="X",
                        help="below 1 is safer, 0 is always the likeliest (default: 0.8)")
    _add_top_k(parser)
    parser.add_argument("--likeliest", type=int, metavar="N", help="sample from the N likeliest characters only")
    parser.add_argument("--top-p", type=float, metavar="P",
                        help="sample from the smallest set of characters with total probability P")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="seed of the sampling (default: 0)")
    parser.add_argument("--dropless", action="store_true",
                        help="ignore the run's evaluation capacity, which rules out generating token by token")


def run_generate(options):
    """Write text with a trained model, as it is made."""
    from minimoe.generation import sampling
    state = train.load(options)
    prompt = _default_prompt(state.tokenizer) if options.prompt is None else arguments.typed(options.prompt)
    if not prompt:
        raise ValueError("--prompt '': must be at least one character")
    prompt_S = state.tokenizer.encode(prompt)
    config = _with_top_k(state.model_config, options)
    config = replace(config, eval_capacity_factor=None) if options.dropless else config
    tokens = sampling.stream(state.params, config, prompt_S, options.n_tokens, options.temperature,
                             options.likeliest, options.top_p, options.seed)
    pieces = itertools.chain([prompt], (state.tokenizer.decode([token]) for token in tokens))
    for piece in terminal.wrapped(pieces) if terminal.is_shown() else pieces:
        terminal.say(piece, end="")
    terminal.say()


def _add_top_k(parser):
    parser.add_argument("--top-k", type=int, metavar="K",
                        help="experts per token (default: as many as the model was trained with)")


def _with_top_k(config, options):
    """The configuration with the --top-k of the options, which a note on standard error mentions."""
    if options.top_k is None or options.top_k == config.top_k:
        return config
    changed = config.with_top_k(options.top_k)
    smaller = "; the gates no longer sum to 1, so outputs are smaller too"
    terminal.complain(f"minimoe: note: {_experts(changed)} per token; the model was trained with {config.top_k}"
                      + smaller * (changed.gates_sum_to_one < config.gates_sum_to_one))
    return changed


def _experts(config):
    """The number of experts per token, in words."""
    mean = " on average" if routers.ROUTERS[config.router].FACTS.k_is_mean else ""
    return f"{config.top_k} expert{'s' * (config.top_k > 1)}{mean}"


def _default_prompt(tokenizer):
    if set("The ") <= set(tokenizer.characters):
        return "The "
    return max(tokenizer.characters, key=lambda c: (c.isprintable(), c))


def add_route(subparsers):
    """The command `route` and its options."""
    parser = arguments.command(subparsers, "route", run_route, "show which experts each character goes to and why")
    parser.add_argument("text", nargs="+", help="the text to route, no longer than the model's context")
    arguments.add_run(parser)
    _add_top_k(parser)
    parser.add_argument("--layer", type=int, metavar="L", help="show this layer only")
    arguments.add_detail(parser, "every decision of every layer, not of one")
    parser.add_argument("--capacity-factor", type=float, metavar="X",
                        help="limit the experts' capacity, to see which assignments are dropped [mean loads]")
    parser.add_argument("--drop-order", choices=capacity.ORDERS, metavar="NAME", help="which assignments come first in "
                        f"an expert's queue: {', '.join(capacity.ORDERS)}")
    parser.add_argument("--color", "--colour", choices=("auto", "always", "never"), default="auto",
                        help="auto: if the output is a terminal and NO_COLOR is not set")


def run_route(options):
    """Show which expert each character goes to, and why."""
    from minimoe import model
    from minimoe.analysis import route
    from minimoe.moe import telemetry
    state, text = train.load(options), arguments.typed(" ".join(options.text))
    config = _limited(_with_top_k(state.model_config, options), options)
    layers = _layers_to_show(config, options)
    if not 1 <= len(text) <= config.max_sequence:
        raise ValueError(f"the text has {len(text)} characters: the model reads 1 to {config.max_sequence}")
    _, routings = model.forward(state.params, state.tokenizer.encode(text)[None], config)
    shown = {layer: routing for layer, routing in zip(config.moe_layers, routings, strict=True) if layer in layers}
    colors = terminal.color_system(options.color)
    print(route.legend(config.n_experts, colors))  # not `say`: colors are escapes
    for layer, routing in shown.items():
        terminal.say(f"\nlayer {layer}, first choice of each character:")
        print(route.colored(text, telemetry.first_choice(routing), colors))
    layers = list(shown) if options.detail else list(shown)[:1]
    terminal.say("\n" + route.ledger(telemetry.ledger([shown[layer] for layer in layers], layers), text))
    if len(layers) < len(shown):
        terminal.say("\n" + terminal.fill("Every decision of the remaining layers: --detail, or --layer for one."))


def _limited(config, options):
    """The configuration with the capacity and the drop order of the options."""
    factor, order = options.capacity_factor, options.drop_order
    if factor is not None and not 0 < factor < float("inf"):
        raise ValueError(f"--capacity-factor {factor}: must be a finite number above 0")
    return replace(config, eval_capacity_factor=config.eval_capacity_factor if factor is None else factor,
                   drop_order=order or config.drop_order)


def _layers_to_show(config, options):
    """The numbers of the layers with a router, or that of --layer."""
    if not config.moe_layers:
        raise ValueError(f"{options.run} has no layer that assigns tokens to experts: there is nothing to show")
    if options.layer is not None and options.layer not in config.moe_layers:
        raise ValueError(f"--layer {options.layer}: the layers with a router are "
                         f"{', '.join(map(str, config.moe_layers))}")
    return config.moe_layers if options.layer is None else (options.layer,)


def add_explore(subparsers):
    """The command `explore` and its options."""
    parser = arguments.command(subparsers, "explore", run_explore,
                               "write an HTML page that shows how a text is routed, with rules that can be changed")
    _add_folder(parser)
    parser.add_argument("--text", nargs="+", metavar="TEXT", help="the texts to route, each a separate sequence no "
                        "longer than the model's context (default: a bit of English and Python)")
    parser.add_argument("--output", metavar="PATH", help="where the page goes (default: explorer.html in the "
                        "run's folder; of the model that ships, in runs/)")


def run_explore(options):
    """Write the router explorer of a run."""
    from minimoe.analysis import explorer
    if options.output is not None:
        explorer.check_path(options.output)  # before any work
    named = options.run is not None
    state = train.load(options, ONE_OF_THEM)
    folder = Path(options.run if named or options.run == arguments.DEFAULT_RUN else "runs")
    output = folder / "explorer.html" if options.output is None else Path(options.output)
    html = explorer.page(state, options.text, options.run)
    explorer.save(html, output)
    terminal.say(terminal.fill(f"{output} is written, {len(html.encode()):,} bytes. Any browser shows it, without a "
                               f"network:") + f"\n{output.resolve().as_uri()}")


def add_doctor(subparsers):
    """The command `doctor` and its options."""
    parser = arguments.command(subparsers, "doctor", run_doctor,
                               "report whether a run's routers are failing, with the evidence")
    _add_folder(parser)
    arguments.add_detail(parser, "the evidence for and against each failure, and what the words mean")


def run_doctor(options):
    """Report the ways in which a run's routers fail, with the evidence."""
    from minimoe.analysis import doctor
    terminal.say(doctor.report(train.load(options, ONE_OF_THEM), options.detail))


def _add_folder(parser):
    parser.add_argument("run", nargs="?", metavar="RUN", help=f"the folder of a run (default: {arguments.USUAL_RUN})")
