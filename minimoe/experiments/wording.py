"""Numbers over seeds in words, and verdicts as lists."""

from minimoe import terminal


def mean_and_spread(values, digits=3):
    """The mean of an array in words, and the standard deviation of a sample if there is more than one value."""
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.{digits}f}"


def on_seeds(n):
    """What so many seeds are worth, in words."""
    if n == 1:
        return "One seed is an anecdote: repeat with --seeds 3."
    return f"Means of {n} seeds: a comparison on which the seeds do not agree shows nothing."


def bullets(title, lines):
    """A title, and below it each line as a paragraph with a dash."""
    return "\n".join([title, *(terminal.fill(line, "- ", "  ") for line in lines)])
