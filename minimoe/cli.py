"""The command line.  Options come from the fields of ModelConfig and TrainConfig, with their explanations."""

import argparse
import os
import shlex
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import threadpoolctl

from minimoe import config as configs
from minimoe.config import ModelConfig, TrainConfig

DEFAULT_RUN, DEFAULT_PRESET = "runs/tour/moe/seed0", "shakespeare-cpu"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the list of all options before it."""

    def error(self, message):
        """Print the message and exit with status 2."""
        self.exit(2, f"minimoe: error: {message} (see {self.prog} --help)\n")


def main(arguments=None):
    """Run a command; returns the exit status: 0, 1 for a wrong gradient, 2 for bad input, 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    try:
        if options.threads is not None and options.threads < 1:
            raise ValueError(f"--threads {options.threads}: must be 1 or more")
        with threadpoolctl.threadpool_limits(options.threads):
            return options.run_command(options) or 0
    except ValueError as error:
        print(f"minimoe: error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"minimoe: error: not enough memory: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print(f"\nminimoe: {str(interruption) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parser():
    """The parser of all commands; `run_command` of what it returns is the function to call."""
    parser = _Parser(
        prog="python -m minimoe", description="A tiny Mixture-of-Experts transformer in NumPy. Without a command: the "
        "tour, which trains a MoE and two dense models and shows where the tokens went.")
    parser.set_defaults(run_command=_tour)
    parser.add_argument("--quick", action="store_true", help="the tour in under 30 seconds, on a smaller model")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each model in the tour (default: 1)")
    parser.add_argument("--fresh", action="store_true", help="train again what an earlier tour has trained")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of matrix products (default: all)")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for add in (_add_train, _add_generate, _add_route, _add_gradcheck, _add_figures):
        add(commands)
    return parser


def _add_train(commands):
    parser = _command(commands, "train", _train, "train one model on the embedded corpus or on your own text")
    parser.add_argument("--preset", choices=configs.PRESETS, help=f"fields to start from (default: {DEFAULT_PRESET})")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--text", nargs="+", metavar="FILE", help="train on these text files, one domain each")
    source.add_argument("--clusters", action="store_true", help="train on a made-up language of four known clusters")
    parser.add_argument("--run", default="runs/train", metavar="FOLDER", help="where to save (default: runs/train)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder of --run")
    _add_fields(parser, ModelConfig(), leave_out=("vocab_size",))
    _add_fields(parser, TrainConfig())


def _add_generate(commands):
    parser = _command(commands, "generate", _generate, "write text with a trained model")
    _add_run(parser)
    parser.add_argument("--prompt", help="the text to go on from (default: 'The ', or any one character that it knows)")
    parser.add_argument("--n-tokens", type=int, default=500, metavar="N", help="characters to write (default: 500)")
    parser.add_argument("--temperature", type=float, default=0.8, help="below 1 is safer, 0 the likeliest (0.8)")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample among the K likeliest characters only")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample among the fewest with probability P together")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default: 0)")


def _add_route(commands):
    parser = _command(commands, "route", _route, "show which expert each character of a text goes to, and why")
    parser.add_argument("text", help="the text to route")
    _add_run(parser)
    parser.add_argument("--layer", type=int, metavar="L", help="show this layer only")
    parser.add_argument("--capacity-factor", type=float, help="limit the experts, to see who is dropped [mean loads]")
    parser.add_argument("--drop-order", choices=configs.DROP_ORDERS, help="who queues first, if they are limited")
    parser.add_argument("--colour", "--color", choices=("auto", "always", "never"), default="auto",
                        help="auto: if the output is a terminal and NO_COLOR is not set")


def _add_gradcheck(commands):
    from minimoe import gradcheck
    parser = _command(commands, "gradcheck", _gradcheck, "check every gradient in the code to rounding error")
    _add_fields(parser, gradcheck.SMALL)


def _add_figures(commands):
    _command(commands, "figures", _figures, "draw the tour's figures again from its finished runs")


def _command(commands, name, run, text):
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run_command=run)
    return parser


def _add_run(parser):
    parser.add_argument("--run", default=DEFAULT_RUN, metavar="FOLDER",
                        help=f"a trained run (default: {DEFAULT_RUN}, which the tour makes)")


def _add_fields(parser, record, leave_out=()):
    """One option a field: --d-model, --top-k, ...; only those that are given end up in the parsed options.

    record: a configuration, whose values the help names as defaults.
    """
    group = parser.add_argument_group(type(record).__name__)
    for field in fields(record):
        if field.name in leave_out:
            continue
        name, text = f"--{field.name.replace('_', '-')}", field.metadata["help"].replace("%", "%%")
        text = f"{text} (default: {str(getattr(record, field.name)).lower()})"
        choices = {"router": configs.ROUTERS, "drop_order": configs.DROP_ORDERS}.get(field.name)
        if "bool" in str(field.type):
            group.add_argument(name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            group.add_argument(name, type=_reader(field.type), choices=choices, default=argparse.SUPPRESS, help=text,
                               metavar=None if choices else "X")


def _reader(type_):
    """The function that reads a field's value: a number, or "none" where the field may be None."""
    kind = next(k for k in (int, float, str) if k.__name__ in str(type_))

    def read(text):
        return None if "None" in str(type_) and text.lower() == "none" else kind(text)

    read.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return read


def _given(options, record):
    return {f.name: getattr(options, f.name) for f in fields(record) if hasattr(options, f.name)}


def _tour(options):
    from minimoe import tour
    if options.seeds < 1:
        raise ValueError(f"--seeds {options.seeds}: must be 1 or more")
    tour.main(options.quick, options.seeds, options.fresh)


def _figures(options):
    from minimoe import tour
    tour.figures()


def _train(options):
    from minimoe.training import checkpoint, loop, progress
    path = Path(options.run) / "checkpoint.npz"
    if options.resume:
        state, text = _resume(path, options)
    else:
        if path.exists():
            raise ValueError(f"{path} exists: go on with it by --resume, or name another folder with --run")
        state, text = _start(options)
    checkpoint.check_folder(path)
    if state.finished:
        print(f"{path} is finished: {state.step} steps, validation loss {state.history['eval_ce'][-1]:.4f}")
        return
    try:
        with progress.bar(state, options.run) as on_step:
            loop.train(state, text, path, on_step)
    except loop.Diverged as error:
        kept = f"{path} keeps step {checkpoint.load(path).step}" if path.exists() else "nothing was saved yet"
        raise ValueError(f"{error}; {kept}; a lower --learning-rate may help") from error
    except loop.Interrupted as error:
        again = shlex.join(["train", "--resume", "--run", options.run, *_source_words(options)])
        raise KeyboardInterrupt(f"{error}; saved in {path}; go on with: python -m minimoe {again}") from error
    print(f"validation loss {state.history['eval_ce'][-1]:.4f} nats per token; saved in {path}\n"
          f"write with it:  python -m minimoe generate --run {shlex.quote(options.run)}\n"
          f"look inside:    python -m minimoe route {shlex.quote(_words_of(text))} --run {shlex.quote(options.run)}")


def _words_of(text):
    """A few characters of the text itself, on one line."""
    start = text.tokenizer.decode(text.held_out[0][:200])
    return max(start.split("\n"), key=len).strip()[:24] or start[:1]


def _start(options):
    from minimoe.training import data, loop
    model_fields, train_fields = _given(options, ModelConfig), _given(options, TrainConfig)
    model_config, train_config = configs.preset(options.preset or DEFAULT_PRESET, model_fields, train_fields)
    text = data.build(_texts(options), train_config.sequence)
    return loop.new_state(replace(model_config, vocab_size=len(text.tokenizer)), train_config, text), text


def _resume(path, options):
    """The state of a checkpoint; options that say otherwise than it are refused."""
    from minimoe.training import checkpoint, data, loop
    state = checkpoint.load(path)
    if options.preset:
        raise ValueError(f"--preset {options.preset}: a run goes on with its own options; leave --preset out")
    for record, have in ((ModelConfig, state.model_config), (TrainConfig, state.train_config)):
        for name, value in _given(options, record).items():
            if asdict(have)[name] != value:
                raise ValueError(f"--{name.replace('_', '-')} {value}: the run in {path} was started with "
                                 f"{asdict(have)[name]}; leave the option out, or start another run")
    text = data.build(_texts(options), state.train_config.sequence)
    loop.check_text(state, text)
    return state, text


def _texts(options):
    from minimoe.training import corpus
    if options.text:
        return corpus.from_files(options.text)
    return corpus.clusters() if options.clusters else corpus.embedded()


def _source_words(options):
    """The options that name the text, to be typed again."""
    return ["--text", *options.text] if options.text else ["--clusters"] if options.clusters else []


def _load(options):
    from minimoe.training import checkpoint
    path = Path(options.run) / "checkpoint.npz"
    if not path.exists():
        raise ValueError(f"there is no trained run in {options.run} (no {path.name}); make one with "
                         "`python -m minimoe` or `python -m minimoe train`")
    return checkpoint.load(path)


def _generate(options):
    from minimoe import generation
    state = _load(options)
    prompt = _default_prompt(state.tokenizer) if options.prompt is None else options.prompt
    if not prompt:
        raise ValueError("--prompt '': must be at least one character")
    prompt_S = state.tokenizer.encode(prompt)
    tokens = generation.stream(state.params, state.model_config, prompt_S, options.n_tokens, options.temperature,
                             options.top_k, options.top_p, options.seed)
    print(prompt, end="", flush=True)
    for token in tokens:
        print(state.tokenizer.decode([token]), end="", flush=True)
    print()


def _default_prompt(tokenizer):
    return "The " if set("The ") <= set(tokenizer.characters) else tokenizer.characters[-1]


def _route(options):
    from minimoe import model
    from minimoe.analysis import terminal
    from minimoe.moe import telemetry
    state, text = _load(options), options.text
    config = replace(state.model_config,
                     eval_capacity_factor=state.model_config.eval_capacity_factor if options.capacity_factor is None
                     else options.capacity_factor, drop_order=options.drop_order or state.model_config.drop_order)
    layers = range(config.n_layers) if options.layer is None else [options.layer]
    if options.layer is not None and not 0 <= options.layer < config.n_layers:
        raise ValueError(f"--layer {options.layer}: the model has layers 0 to {config.n_layers - 1}")
    if not 1 <= len(text) <= config.max_sequence:
        raise ValueError(f"the text has {len(text)} characters: the model takes 1 to {config.max_sequence}")
    _, routings = model.forward(state.params, state.tokenizer.encode(text)[None], config)
    colour = options.colour == "always" or (
        options.colour == "auto" and sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    print(terminal.legend(config.n_experts, colour))
    for layer in layers:
        routing = routings[layer]
        print(f"\nlayer {layer}, first choice of each character:")
        print(terminal.coloured(text, routing.expert_A[routing.rank_A == 0], colour))
    print("\n" + terminal.ledger([row for row in telemetry.ledger(routings) if row.layer in layers], text))


def _gradcheck(options):
    from minimoe import gradcheck
    config = replace(gradcheck.SMALL, **_given(options, ModelConfig))
    return 0 if gradcheck.check_everything(config, print) else 1
