"""Fields of a configuration, each with a default and an explanation; and the checks that reject impossible values."""

import sys
from dataclasses import field


def option(default, text, unit=""):
    """A field with its default, its meaning and its unit, from which the command line makes an option."""
    return field(default=default, metadata={"help": f"{text} [{unit}]" if unit else text})


def require(condition, name, value, reason):
    """Raise ValueError with the field's name, its value and the reason, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name} = {shown(value)}: {reason}")


def shown(value, most=200):
    """A value as it appears in messages: its repr, shortened if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print numbers of more than 4300 digits
        return f"a number of {value.bit_length():,} bits" if isinstance(value, int) else type(value).__name__
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def listed(names, most=3):
    """Names or numbers as they appear in messages: the first ones, and how many more there are."""
    names = [str(name) for name in sorted(names)]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(name if len(name) <= 80 else f"{name[:80]}..." for name in names[:most]) + more


def require_names(what, given, expected):
    """Raise ValueError unless a dict has exactly the expected keys."""
    missing, unknown = expected.keys() - given.keys(), given.keys() - expected.keys()
    if missing or unknown:
        raise ValueError(f"{what} do not fit the config: missing [{listed(map(repr, missing))}], unknown "
                         f"[{listed(map(repr, unknown))}]")


def check(config, name, condition, reason):
    """The same for a field of a configuration."""
    require(condition, name, getattr(config, name), reason)


def require_whole(config, names, least=0):
    """Raise ValueError unless the fields are whole numbers of at least `least`."""
    for name in names:
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        check(config, name, whole and value >= least, f"must be a whole number, {least} or more")


def require_counts(config, names, least=1):
    """Raise ValueError unless the fields are whole numbers from `least` to what a machine can hold."""
    for name in names:
        require_whole(config, (name,), least)
        check(config, name, getattr(config, name) <= 10**9,
              "is more than any machine can hold; 1,000,000,000 is the limit")


def require_numbers(config, names, positive):
    """Raise ValueError unless the fields are finite numbers, above 0 if `positive`, else 0 or more."""
    for name in names:
        value = getattr(config, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        check(config, name, number and (value > 0 if positive else value >= 0),
              f"must be a finite number {'above 0' if positive else 'of 0 or more'}")
        if isinstance(value, float):
            object.__setattr__(config, name, float(value))  # a numpy.float64 would turn float32 arrays into float64


def require_name(config, name, known):
    """Raise ValueError unless the field is one of the known names."""
    value = getattr(config, name)
    check(config, name, isinstance(value, str) and value in known, f"must be one of {', '.join(known)}")


def require_truth(config, name):
    """Raise ValueError unless the field is True or False."""
    check(config, name, isinstance(getattr(config, name), bool), "must be True or False")
