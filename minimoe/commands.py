"""What each command does with its options.  What a command needs is imported when it runs: all start quickly."""

import os
import shlex
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

from minimoe import config as configs
from minimoe.config import ModelConfig, TrainConfig

DEFAULT_THREADS = 2
"""As many as the presets have groups; more would have nothing to do."""

DEFAULT_RUN, DEFAULT_PRESET = "runs/tour/moe/seed0", "shakespeare-cpu"


TOUR_SEEDS, ROUTERS_SEEDS, COMPARE_SEEDS, BENCH_STEPS = 1, 3, 3, 40

BENCH_FIELDS = {"batch", "sequence", "groups", "accumulate"}
"""Fields of TrainConfig on which the time of a step depends."""

COST_FIELDS = {"batch", "sequence", "groups"}


def _seeds(options, default):
    seeds = default if options.seeds is None else options.seeds
    if seeds < 1:
        raise ValueError(f"--seeds {seeds}: must be 1 or more")
    return seeds


def _given(options, record):
    return {f.name: getattr(options, f.name) for f in fields(record) if hasattr(options, f.name)}


def tour(options):
    """Train three models, compare them, draw what the router did."""
    from minimoe import tour
    tour.main(bool(options.quick), _seeds(options, TOUR_SEEDS), bool(options.fresh), options.threads)


def figures(options):
    """Draw the figures again."""
    from minimoe import budgets, costs, tour, zoo
    drawn = {"routers": zoo.figure(), "compare": budgets.figure()}
    tour.figures()
    costs.figure()
    for name in (name for name, there in drawn.items() if not there):
        print(f"figures/{name}.png is left as it is: `python -m minimoe {name}` trains what it shows")


def routers(options):
    """Train every router on one budget, and compare them."""
    from minimoe import zoo
    zoo.main(bool(options.quick), _seeds(options, ROUTERS_SEEDS), bool(options.fresh), options.threads)


def compare(options):
    """Train MoE and dense models at equal steps, FLOPs and time."""
    from minimoe import budgets
    budgets.main(bool(options.quick), _seeds(options, COMPARE_SEEDS), bool(options.fresh), options.threads)


def causality(options):
    """Measure which routers look into the future."""
    from minimoe.analysis import causality
    if options.trials < 1:
        raise ValueError(f"--trials {options.trials}: must be 1 or more")
    print(causality.table(causality.study(options.trials)))


def rosetta(options):
    """One batch under the conventions of many systems."""
    from minimoe.analysis import rosetta
    print(rosetta.table(rosetta.read(rosetta.example())))


def train(options):
    """Train one model, or go on with one."""
    from minimoe.analysis import comparison
    from minimoe.training import checkpoint, loop, progress
    path = Path(options.run) / "checkpoint.npz"
    if options.resume:
        state, text = _resume(path, options)
    else:
        if path.exists():
            raise ValueError(f"{path} exists: go on with it by --resume, or name another folder with --run")
        state, text = _start(options)
    checkpoint.check_folder(path)
    print(comparison.layers_words(state.model_config))
    if state.finished:
        print(f"{path} is finished: {state.step} steps, validation loss {state.history['eval_ce'][-1]:.4f}")
        return
    try:
        with progress.bar(state, options.run) as on_step:
            loop.train(state, text, path, on_step, options.threads)
    except loop.Diverged as error:
        kept = f"{path} keeps step {checkpoint.load(path).step}" if path.exists() else "nothing was saved yet"
        raise ValueError(f"{error}; {kept}; start anew in another --run, with a lower --learning-rate") from error
    except loop.Interrupted as error:
        again = shlex.join(["train", "--resume", "--run", options.run, *_source_words(options)])
        raise KeyboardInterrupt(f"{error}; saved in {path}; go on with: python -m minimoe {again}") from error
    print(comparison.router_words(state.history, state.model_config.moe_layers))
    print(f"validation loss {state.history['eval_ce'][-1]:.4f} nats per token; saved in {path}")
    for line in _what_next(state.model_config, text, shlex.quote(options.run)):
        print(line)


def _what_next(config, text, run):
    """Commands that go on from a trained run: those that this model allows."""
    from minimoe import generation
    if generation.causal(config):
        capacity = " --dropless" if config.eval_capacity_factor is not None else ""
        yield f"write with it:  python -m minimoe generate --run {run}{capacity}"
    if config.moe_layers:
        yield f"look inside:    python -m minimoe route {shlex.quote(_words_of(text))} --run {run}"
        yield f"is it healthy?  python -m minimoe doctor {run}"


def _words_of(text):
    """A few characters of the text itself, on one line."""
    start = text.tokenizer.decode(text.held_out[0][:200])
    return max(start.split("\n"), key=len).strip()[:24] or start[:1]


def _start(options):
    from minimoe.training import data, loop
    model_fields, train_fields = _given(options, ModelConfig), _given(options, TrainConfig)
    model_config, train_config = configs.preset(options.preset or DEFAULT_PRESET, model_fields, train_fields)
    if options.finer is not None:
        model_config = model_config.finer(options.finer)
    text = data.build(_texts(options), train_config.sequence)
    return loop.new_state(replace(model_config, vocab_size=len(text.tokenizer)), train_config, text), text


def _resume(path, options):
    """The state of a checkpoint; options that say otherwise than it are refused."""
    from minimoe.training import checkpoint, data, loop
    state = checkpoint.load(path)
    for name in ("preset", "finer"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} {getattr(options, name)}: a run goes on with its options; leave it out")
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
    return corpus.clusters() if getattr(options, "clusters", False) else corpus.embedded()


def _source_words(options):
    """The options that name the text, to be typed again."""
    return ["--text", *options.text] if options.text else ["--clusters"] if options.clusters else []


def _load(options, how="with --run"):
    from minimoe.training import checkpoint
    path = Path(options.run) / "checkpoint.npz"
    if not path.exists():
        found = sorted(p.parent.as_posix() for p in Path("runs").rglob(path.name))
        ways = "`python -m minimoe` or `python -m minimoe train`"
        more = f" and {len(found) - 6} more" if len(found) > 6 else ""
        way_out = f"there are {', '.join(found[:6])}{more}: choose {how}" if found else f"make one with {ways}"
        raise ValueError(f"there is no trained run in {options.run} (no {path.name}); {way_out}")
    state = checkpoint.load(path)
    if not state.finished:
        print(f"minimoe: note: {options.run} is at step {state.step} of {state.train_config.n_steps}", file=sys.stderr)
    return state


def generate(options):
    """Write text with a trained model, as it is made."""
    from minimoe import generation
    state = _load(options)
    prompt = _default_prompt(state.tokenizer) if options.prompt is None else options.prompt
    if not prompt:
        raise ValueError("--prompt '': must be at least one character")
    prompt_S = state.tokenizer.encode(prompt)
    config = replace(state.model_config, eval_capacity_factor=None) if options.dropless else state.model_config
    tokens = generation.stream(state.params, config, prompt_S, options.n_tokens, options.temperature,
                             options.top_k, options.top_p, options.seed)
    print(prompt, end="", flush=True)
    for token in tokens:
        print(state.tokenizer.decode([token]), end="", flush=True)
    print()


def _default_prompt(tokenizer):
    return "The " if set("The ") <= set(tokenizer.characters) else tokenizer.characters[-1]


def route(options):
    """Show which expert each character goes to, and why."""
    from minimoe import model
    from minimoe.analysis import terminal
    from minimoe.moe import telemetry
    state, text = _load(options), " ".join(options.text)
    if options.capacity_factor is not None and not 0 < options.capacity_factor < float("inf"):
        raise ValueError(f"--capacity-factor {options.capacity_factor}: must be a finite number above 0")
    config = replace(state.model_config,
                     eval_capacity_factor=state.model_config.eval_capacity_factor if options.capacity_factor is None
                     else options.capacity_factor, drop_order=options.drop_order or state.model_config.drop_order)
    if not config.moe_layers:
        raise ValueError(f"{options.run} has no layer that assigns tokens to experts: there is nothing to show")
    layers = config.moe_layers if options.layer is None else [options.layer]
    if options.layer is not None and options.layer not in config.moe_layers:
        raise ValueError(f"--layer {options.layer}: the layers with a router are "
                         f"{', '.join(map(str, config.moe_layers))}")
    if not 1 <= len(text) <= config.max_sequence:
        raise ValueError(f"the text has {len(text)} characters: the model takes 1 to {config.max_sequence}")
    _, routings = model.forward(state.params, state.tokenizer.encode(text)[None], config)
    colour = options.colour == "always" or (
        options.colour == "auto" and sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    print(terminal.legend(config.n_experts, colour))
    shown = {layer: r for layer, r in zip(config.moe_layers, routings, strict=True) if layer in layers}
    for layer, routing in shown.items():
        print(f"\nlayer {layer}, first choice of each character:")
        print(terminal.coloured(text, telemetry.first_choice(routing), colour))
    print("\n" + terminal.ledger(telemetry.ledger(list(shown.values()), list(shown)), text))


def doctor(options):
    """Name the ways in which a run's routers fail, with the evidence."""
    from minimoe.analysis import doctor
    print(doctor.report(_load(options, "one of them")))


def gradcheck(options):
    """Check all gradients; status 1 if one is wrong."""
    from minimoe import gradcheck
    config = replace(gradcheck.SMALL, **_given(options, ModelConfig))
    return 0 if gradcheck.check_everything(config, print) else 1


def bench(options):
    """Measure this machine: a training step, its matrix products, generation, and where the time goes."""
    from minimoe.analysis import bench, plots
    from minimoe.training import progress
    plots.check_path(options.figure)
    configurations = configs.preset(options.preset or DEFAULT_PRESET, _given(options, ModelConfig),
                                    _given(options, TrainConfig))
    measured = bench.measure(*configurations, options.steps, options.threads, lambda n: progress.rounds(n, "bench"))
    print(bench.report(measured))
    places = bench.usual(measured.places)
    plots.save(plots.time_by_part(places, bench.parts(places), bench.title(places)), options.figure)
    print(f"\nPicture: {options.figure}")


def cost(options):
    """Say what a model costs: a published one, those of a file, that of a run, or one that is not trained."""
    from minimoe import costs
    kind = next((kind for kind in ("run", "model", "list", "file") if getattr(options, kind) is not None), None)
    given = {**_given(options, ModelConfig), **_given(options, TrainConfig)}
    if kind and given:
        raise ValueError(f"--{next(iter(given)).replace('_', '-')} has no use beside --{kind}")
    for name in ("ranks", "text"):
        if getattr(options, name) is not None and kind != "run":
            raise ValueError(f"--{name} has no use without --run, whose routing is looked at")
    where = costs.where(options, ours=kind in (None, "run"))
    models = costs.known() if kind == "list" else costs.of_file(options.file) if kind == "file" else []
    if len(models) == 1 and not options.json:  # there is room for all of it
        records = [costs.of_published(models[0], where)]
        answer = costs.answer(records[0], as_json=False)
    elif models:
        records = [costs.of_published(model, where) for model in models] if options.figure else []
        answer = costs.counted(models, options.json, with_keys=kind == "list")
    else:
        records = [_priced(options, kind, costs, where)]
        answer = costs.answer(records[0], options.json)
    if options.figure is not None:
        costs.draw(records, options.figure)
    print(answer)
    if options.figure is not None:
        print(f"Picture: {options.figure}", file=sys.stderr)  # JSON stays JSON


def _priced(options, kind, costs, where):
    """The record of one model."""
    if kind == "model":
        return costs.of_published(costs.find(options.model), where)
    if kind is None:
        return costs.of_ours(*configs.preset(options.preset or DEFAULT_PRESET, _given(options, ModelConfig),
                                             _given(options, TrainConfig)), where)
    from minimoe.training import data, loop
    state = _load(options)
    text = data.build(_texts(options), state.train_config.sequence)
    loop.check_text(state, text)
    return costs.of_run(state, text, where, options.ranks)
