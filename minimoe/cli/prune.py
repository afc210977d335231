"""The command `prune`: makes a smaller or sparser run from a trained one."""

import argparse

from minimoe import terminal
from minimoe.cli import arguments, train
from minimoe.sparsity import cuts


def add_prune(subparsers):
    """The command `prune` and its options."""
    parser = arguments.command(subparsers, "prune", run_prune,
                               "prune a trained run: weights, neurons, heads, layers or experts", in_groups=True)
    arguments.add_run(parser)
    parser.add_argument("--output", required=True, metavar="FOLDER",
                        help="where the pruned run goes: a run like any other, which all commands can use")
    parser.add_argument("--method", required=True, choices=cuts.METHODS, metavar="NAME", help="what is removed: "
                        + "; ".join(f"{name}: {words}" for name, words in cuts.METHODS.items()))
    share = parser.add_mutually_exclusive_group(required=True)
    share.add_argument("--sparsity", type=arguments.number, metavar="X", help="share of the weights or units to prune, "
                       "including weights that are zero already; rounded down in each output, matrix or layer")
    share.add_argument("--pattern", type=_pattern, metavar="N:M",
                       help="keep N of each M consecutive inputs of an output")
    share.add_argument("--keep", type=int, metavar="N", help="units to keep: layers; or heads, experts or neurons of "
                       "each layer or expert")
    parser.add_argument("--score", choices=cuts.ALL_SCORES, metavar="NAME", help="score by which units are chosen, the "
                        "lowest go: " + "; ".join(f"{name}: {words}" for name, words in cuts.ALL_SCORES.items())
                        + " (default: "
                        + ", ".join(f"{score} for {method}" for method, score in cuts.SCORES.items()) + ")")
    parser.add_argument("--names", nargs="+", metavar="PARAMETER", help="prune the weights of these matrices alone, "
                        "such as head.w_DV, or of these parts, such as layers.0.moe; a name that is not there is "
                        "answered with those that are (default: attention and feed-forward networks)")
    parser.add_argument("--calibration", type=int, default=32, metavar="N", help="sequences of the training text that "
                        "calibrate the method (default: 32)")
    parser.add_argument("--recover", type=int, metavar="N", help="train for N more steps; what is pruned stays pruned "
                        "(default: `train --resume` does so later, for a quarter of the run's steps)")
    parser.add_argument("--learning-rate", type=float, metavar="X",
                        help="peak learning rate of the recovery, now or later (default: the run's)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--text", nargs="+", metavar="FILE", help="the run's training text, if it was your own")
    source.add_argument("--clusters", action="store_true", help="the run was trained on the made-up language")


def _pattern(words):
    """(kept, group) of words such as 2:4."""
    kept, colon, group = words.partition(":")
    if not (colon and kept.isdigit() and group.isdigit()):
        raise argparse.ArgumentTypeError(f"{words!r}: must be N:M, such as 2:4")
    if not 1 <= int(kept) < int(group):
        raise argparse.ArgumentTypeError(f"{words!r} would keep {kept} of {group}: must be N:M with N below M")
    return int(kept), int(group)


def run_prune(options):
    """Prune a trained run, report what that saves and costs, and train it to recover if requested."""
    from minimoe.training import checkpoint, data, pruned
    path = train.checkpoint_path(options.output)
    if options.sparsity == 0:
        raise ValueError("--sparsity 0: nothing would be removed; must be above 0")
    if path.exists():
        raise ValueError(f"{path} exists: name a different folder with --output")
    if options.recover is not None and options.recover < 1:
        raise ValueError(f"--recover {options.recover}: must be 1 or more")
    state = train.load(options)
    checkpoint.check_folder(path)
    text = data.build(train.texts(options), state.train_config.sequence)
    n_steps = options.recover or max(state.train_config.n_steps // 4, 1)
    training = pruned.recovery(state.train_config, n_steps, options.learning_rate)
    new, cut = pruned.prune(state, text, options.method, training, options.calibration, sparsity=options.sparsity,
                            pattern=options.pattern, keep=options.keep, score=options.score, names=options.names)
    for sentence in cut.words:
        terminal.say(terminal.fill(sentence, hanging="  "))
    terminal.say(f"\n{_saved(state, new)}\n")
    before, after = _held_out_loss(state, text), new.history["eval_ce"][0]
    terminal.say(terminal.fill(
        f"validation loss {before:.4f} before, {after:.4f} after, {after - before:+.4f} nats per token, on the sample "
        "of held-out text that training evaluates on", hanging="  "))
    checkpoint.save(path, new)
    again = terminal.command("train", "--resume", "--run", options.output, *train.source_words(options))
    if options.recover is None:
        quarter = f"a quarter of {state.train_config.n_steps:,}; --recover chooses"
        terminal.say(terminal.fill(f"saved in {path}\nrecover it in {n_steps:,} steps ({quarter}), peak learning rate "
                                   f"{training.learning_rate:g}:", hanging="  ") + f"\n  {again}")
    else:
        train.go_on(new, text, options.output, options.threads, again)
        terminal.say(terminal.fill(
            f"validation loss {before:.4f} before, {after:.4f} after pruning, {new.history['eval_ce'][-1]:.4f} after "
            f"{n_steps} steps of recovery; saved in {path}", hanging="  "))


def _saved(state, new):
    """What the new run saves compared with the old one, as a table."""
    from minimoe.cost import sparse
    from minimoe.sparsity import savings
    return savings.change(*(sparse.record(run.masks, run.model_config) for run in (state, new)))


def _held_out_loss(state, text):
    from minimoe.training import evaluation
    return evaluation.evaluate(state.params, text, state.model_config, state.train_config)["ce"]
