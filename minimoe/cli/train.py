"""The command `train`, and how commands find the runs that it and others make."""

from dataclasses import asdict, replace
from pathlib import Path

from minimoe import terminal
from minimoe.cli import arguments
from minimoe.config import ModelConfig, TrainConfig, presets

FEW_CHANGES = 5
"""Changes of the masks below which dynamic sparse training is close to a static mask."""


def add_train(subparsers):
    """The command `train` and its options."""
    parser = arguments.command(subparsers, "train", run_train,
                               "train one model on the built-in corpus or on your own text",
                               in_groups=True)
    arguments.add_preset(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--text", nargs="+", metavar="FILE", help="train on these text files, one domain each")
    source.add_argument("--clusters", action="store_true", help="train on a made-up language of four known clusters")
    parser.add_argument("--finer", type=int, metavar="M", help="fine-grained experts: M times as many, "
                        "M times narrower, M times as many per token, at the same cost (DeepSeekMoE)")
    parser.add_argument("--run", default="runs/train", metavar="FOLDER", help="where to save (default: runs/train)")
    parser.add_argument("--resume", action="store_true", help="resume the run in the folder of --run")
    model_config, train_config = presets.preset(arguments.DEFAULT_PRESET)
    arguments.add_fields(parser, model_config, leave_out=("vocab_size",))
    arguments.add_fields(parser, train_config)


def run_train(options):
    """Train one model, or resume one."""
    from minimoe.config import describe
    from minimoe.training import checkpoint
    path = checkpoint_path(options.run)
    if options.resume:
        state, text = _resume(path, options)
        if not state.finished:
            terminal.say(terminal.fill(f"{path}: resuming from step {state.step} of {state.train_config.n_steps}"))
    else:
        if path.exists():
            raise ValueError(f"{path} exists: resume it with --resume, or name a different folder with --run")
        state, text = _start(options)
    checkpoint.check_folder(path)
    terminal.say(terminal.fill(describe.describe_layers(state.model_config), hanging="  "))
    if state.train_config.sparsity > 0:
        _announce_masks(state.train_config)
    if state.finished:
        terminal.say(terminal.fill(f"{path} is finished: {state.step} steps, validation loss "
                                   f"{state.history['eval_ce'][-1]:.4f}", hanging="  "))
        return
    again = terminal.command("train", "--resume", "--run", options.run, *source_words(options))
    go_on(state, text, options.run, options.threads, again)
    terminal.say(terminal.fill(
        f"validation loss {state.history['eval_ce'][-1]:.4f} nats per token; saved in {path}", hanging="  "))
    for line in (*_what_came_out(state), *_what_next(state.model_config, text, options.run)):
        terminal.say(line)


def _announce_masks(train_config):
    from minimoe.config import describe
    terminal.say(terminal.fill(describe.describe_masks(train_config), hanging="  "))
    if train_config.dynamic != "static" and train_config.n_mask_changes < FEW_CHANGES:
        terminal.complain(f"minimoe: note: fewer than {FEW_CHANGES} changes of the masks; a smaller --sparsity-every "
                          f"({train_config.sparsity_every}) or more --n-steps make more")


def _masks_now(state):
    """Which weights are zero at the end, and how many are not where the run began with weights."""
    from minimoe.sparsity import masked, pruning
    config = state.train_config
    words = pruning.report(state.params, state.masks).words(asked=config.sparsity if config.sparsity > 0 else None)
    if config.n_mask_changes and masked.RULES[config.dynamic].starts_sparse:
        moved, kept = masked.moved(state)
        words += f"\n{moved:,} of the {kept:,} remaining weights ({moved / kept:.1%}) are at places that began as zero"
    return words


def go_on(state, text, run, threads, again):
    """Train a run to its end, with a progress bar.

    run: its folder.   threads: see `loop.train`.   again: the command that resumes it, for a message.
    Raises ValueError if it diverges, KeyboardInterrupt after Ctrl-C.
    """
    from minimoe.training import checkpoint, loop, progress, runs
    path = runs.checkpoint_path(run)
    try:
        with progress.bar(state, run) as on_step:
            loop.train(state, text, path, on_step, threads)
    except loop.Diverged as error:
        kept = f"{path} keeps step {checkpoint.load(path).step}" if path.exists() else "nothing was saved yet"
        raise ValueError(f"{error}; {kept}; start again in a different --run, with a lower --learning-rate") from error
    except loop.Interrupted as error:
        raise KeyboardInterrupt(f"{error}; saved in {path}; resume it with:", again) from error


def _what_came_out(state):
    """What the routers did, if they had a choice, and where the weights of a sparse model are."""
    from minimoe.training import record
    if state.model_config.n_experts > 1:
        yield record.describe_routers(state.history, state.model_config.moe_layers)
    if state.masks:
        yield terminal.fill(_masks_now(state), hanging="  ")


def _what_next(config, text, run):
    """Commands that use a trained run, as far as this model supports them."""
    from minimoe.generation import sampling
    if sampling.causal(config):
        capacity = ["--dropless"] * (config.eval_capacity_factor is not None)
        yield f"write with it:\n  {terminal.command('generate', '--run', run, *capacity)}"
    if config.moe_layers and config.n_experts > 1:
        yield f"look inside:\n  {terminal.command('route', _words_of(text), '--run', run)}"
        yield f"is it healthy?\n  {terminal.command('doctor', run)}"


def _words_of(text):
    """A few characters of the text itself that this console shows as they are, on one line."""
    start = text.tokenizer.decode(text.held_out[0][:200])
    lines = "".join(c if terminal.printable(c) == c else "\n" for c in start).split("\n")
    return max(lines, key=len).strip(" -")[:24] or start[:1]


def _start(options):
    from minimoe.training import data, loop
    model_fields, train_fields = arguments.given(options, ModelConfig), arguments.given(options, TrainConfig)
    model_config, train_config = presets.preset(options.preset or arguments.DEFAULT_PRESET, model_fields, train_fields)
    if options.finer is not None:
        model_config = model_config.finer(options.finer)
    text = data.build(texts(options), train_config.sequence)
    return loop.new_state(replace(model_config, vocab_size=len(text.tokenizer)), train_config, text), text


def _resume(path, options):
    """The state of a checkpoint; options that contradict it are refused."""
    from minimoe.training import checkpoint, data, loop
    state = checkpoint.load(path)
    for name in ("preset", "finer"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} {getattr(options, name)}: a run is resumed with its own options; leave it out")
    for record, have in ((ModelConfig, state.model_config), (TrainConfig, state.train_config)):
        for name, value in arguments.given(options, record).items():
            if asdict(have)[name] != value:
                raise ValueError(f"--{name.replace('_', '-')} {value}: the run in {path} was started with "
                                 f"{asdict(have)[name]}; leave the option out, or start a new run")
    text = data.build(texts(options), state.train_config.sequence)
    if text.digest != state.data_digest and not source_words(options):
        raise ValueError(f"the run in {path} was trained on your own texts, {', '.join(state.domains)}: name the "
                         "files with --text, or use --clusters")
    loop.check_text(state, text)
    return state, text


def source_words(options):
    """The options that name the text, for a command to be repeated."""
    return ["--text", *options.text] if options.text else ["--clusters"] if options.clusters else []


def texts(options):
    """The texts that the options name; the embedded ones by default."""
    from minimoe.training import corpus
    if options.text:
        return corpus.from_files(options.text)
    return corpus.clusters() if getattr(options, "clusters", False) else corpus.embedded()


def load(options, how="with --run"):
    """The TrainState of the run that the options name; if they name none, see `usual_run`.

    how: how to choose a different one, for a message.   Raises ValueError with a list of runs if it does not exist.
    """
    from minimoe.training import checkpoint, runs
    if options.run is None:
        options.run = usual_run(how)
    path = checkpoint_path(options.run)
    if not path.exists():
        found = [folder.as_posix() for folder in runs.find()]
        ways = "`python -m minimoe` or `python -m minimoe train`"
        more = f" and {len(found) - 6} more" if len(found) > 6 else ""
        shipped = ships()
        ours = f"{shipped}, which ships with the lessons"
        way_out = (f"there are {', '.join(found[:6])}{more}{f', and {ours}' * bool(shipped)}: choose {how}" if found
                   else f"make one with {ways}" + f", or use {ours}" * bool(shipped))
        raise ValueError(f"there is no trained run in {options.run} (no {path.name}); {way_out}")
    state = checkpoint.load(path)
    if not state.finished:
        terminal.complain(f"minimoe: note: {options.run} " + (
            f"is at step {state.step} of {state.train_config.n_steps}" if state.step else
            "has not been trained since it was made from another run"))
    return state


def checkpoint_path(run):
    """The checkpoint in the folder of a run.  Raises ValueError if the folder is a file."""
    from minimoe.training import runs
    if Path(run).is_file():
        inside = Path(run).name == runs.CHECKPOINT
        way_out = (f"name the folder, {Path(run).parent}" if inside
                   else f"a run is a folder with {runs.CHECKPOINT} in it")
        raise ValueError(f"{run} is a file: {way_out}")
    return runs.checkpoint_path(run)


def usual_run(how):
    """The folder of the tour's MoE; until it exists, that of the model that ships, with a note."""
    from minimoe.training import runs
    shipped = ships()
    if runs.checkpoint_path(arguments.DEFAULT_RUN).exists() or shipped is None:
        return arguments.DEFAULT_RUN
    terminal.complain(f"minimoe: note: this is the model that ships, {shipped}, since the tour has not run yet; "
                      f"choose a different one {how}")
    return shipped


def ships():
    """The folder of the lessons' trained model, which is in a clone but not in the package; None without it."""
    from minimoe.experiments import archive
    folder = archive.FOLDER / archive.MODEL
    if not folder.is_dir():
        return None
    near = folder.is_relative_to(Path.cwd())
    return (folder.relative_to(Path.cwd()) if near else folder).as_posix()
