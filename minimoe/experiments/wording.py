"""Numbers over seeds in words, and verdicts as lists."""

from minimoe import terminal


def mean_and_spread(values, digits=3):
    """The mean of an array in words, and the standard deviation of a sample if there is more than one value."""
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.{digits}f}"


def too_short(n_steps):
    """A warning about the numbers of a quick run."""
    return f"{n_steps} steps compare nothing: this shows that everything works."


def each_loss(say, ce):
    """For `engine.run`: reports the validation loss of each run when it ends.  ce: gets it from its measurements."""
    return lambda cell, measured, left: say(f"{cell.words}: validation loss {float(ce(measured)):.3f} nats per token"
                                            f"{f', {left} to go' * (left > 0)}")


def of_seeds(n):
    """How many, in words."""
    return f"{n} seed{'s' * (n > 1)}"


def on_seeds(n):
    """How reliable this number of seeds is, in words."""
    if n == 1:
        return "One seed is an anecdote: repeat with --seeds 3."
    return f"Means of {n} seeds: a comparison on which the seeds do not agree shows nothing."


def bullets(title, lines):
    """A title, and below it each line as a paragraph with a dash."""
    return "\n".join([title, *(terminal.fill(line, "- ", "  ") for line in lines)])
