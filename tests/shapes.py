"""Suffixes lie unless checked: a tracer compares every name like x_TD with its real shape while code runs.

It looks at the local variables of each function at each line, at what the function returns, at the entries of dicts and
records in that, and at the shapes that the docstring promises ("Returns y_TD", "Gradients of x_TD and w_DF").
"""

import re
import sys
from dataclasses import is_dataclass
from pathlib import Path

SUFFIX = re.compile(r"\b\w*[a-z0-9]_([A-Z1]*[A-Z][A-Z1]*)\b")
PROMISE = re.compile(r"(?:Returns|Gradients? of)\s(.*?)(?:[.:;]\s|\.?$)", re.DOTALL)

ELSEWHERE = {
    "ops.linear": "F",  # the head writes to V, the router to E
    "ops.softmax": "...TE",  # attention weighs M keys with it
    "ops.sigmoid": "...TE",  # SiLU has it of F hidden numbers
    "ops.silu_gate": "TF", "ops.swiglu": "TF",  # one expert has fewer rows than T; a dense block is J wide
    "soft.unit": "...T",  # slots are scaled too
    "sigmoid_bias._best": "T", "sigmoid_bias.within_groups": "T",  # tokens with scores next to 0
    "linear_assignment.balanced_assignment": "T", "linear_assignment._prices": "T",
    "linear_assignment._moves": "T", "sinkhorn.plan": "T",  # real tokens
    "attention.split_heads": "H", "attention.rope": "H", "attention._swapped": "H",  # keys have G heads
}
"""Operation that is applied to other axes too -> letters that have sizes of their own in it; ... for leading axes."""


def codes(file):
    """The code of a file, and of each function, class and comprehension in it."""
    found = [compile(Path(file).read_text("utf-8"), str(file), "exec")]
    for code in found:
        found += [const for const in code.co_consts if hasattr(const, "co_code")]
    return found


def functions(file):
    """Each function and class of a file, as "module.name"."""
    return {f"{Path(file).stem}.{code.co_qualname}" for code in codes(file)}


def suffix(name):
    """The letters of a name's shape; None for a name without a suffix."""
    match = SUFFIX.fullmatch(name)
    return match and match[1]


def suffixed_locals(file):
    """(file, first line, name) of each suffixed argument and local variable of each function in a file."""
    return {(str(file), code.co_firstlineno, name)
            for code in codes(file) for name in code.co_varnames + code.co_cellvars if suffix(name)}


def parts(value):
    """The contents of a container, by name; nothing for anything else."""
    if isinstance(value, dict):
        return {str(name).rpartition(".")[2]: part for name, part in value.items()}
    if hasattr(value, "_asdict"):
        return value._asdict()
    if is_dataclass(value) and not isinstance(value, type):
        return vars(value)
    return {str(i): part for i, part in enumerate(value)} if isinstance(value, (tuple, list)) else {}


def containers(value):
    """The parts of a container and of all containers in it."""
    inside = parts(value)
    if inside:
        yield inside
    for part in inside.values():
        yield from containers(part)


def leaves(value):
    """The contents of nested tuples, in order."""
    return [leaf for part in value for leaf in leaves(part)] if type(value) is tuple else [value]


def lie(name, value, sizes, leading=False):
    """What is wrong with a name's suffix, or None.  New letters are added to `sizes`.

    leading: whether the first letter may stand for several axes.
    """
    letters, shape = suffix(name), getattr(value, "shape", None)
    if shape is None:
        return f"is a {type(value).__name__}, not an array"
    more = len(shape) - len(letters)
    axes = (shape[:more + 1], *shape[more + 1:]) if leading and more > 0 else shape
    if len(axes) != len(letters):
        return f"has shape {shape}"
    for letter, size in zip(letters, axes, strict=True):
        expected = 1 if letter == "1" else sizes.setdefault(letter, size)
        if size != expected:
            return f"has shape {shape}, but {letter} = {expected}"
    return None


class Tracer:
    """A block that collects the wrong suffixes in functions of some files, and what was `seen`: see `suffixed_locals`.

    sizes: letter -> its size in this run.  A letter that is not in it must have one size in each call.
    """

    def __init__(self, files, sizes):
        self.files, self.sizes = {str(file) for file in files}, sizes
        self.lies, self.seen = {}, set()

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)

    def _enter(self, frame, event, arg):
        code = frame.f_code
        if code.co_filename not in self.files:
            return None
        where = f"{Path(code.co_filename).stem}.{code.co_qualname}"
        free = ELSEWHERE.get(re.sub("_(forward|backward)$", "", where), "")
        sizes = {letter: size for letter, size in self.sizes.items() if letter not in free}

        leading, known = "..." in free, {}

        def look(frame, event, result):
            new = {name: value for name, value in frame.f_locals.items() if known.get(name) is not value}
            known.update(new)
            self._check(new.items(), where, sizes, leading)
            self.seen |= {(code.co_filename, code.co_firstlineno, name) for name in new}
            if event == "return" and result is not None:
                self._check(_promised(code, result), f"what {where} returns", sizes, leading)
                for inside in containers(result):
                    self._check(inside.items(), f"in what {where} returns", dict(self.sizes), leading)
            return look

        return look

    def _check(self, named, place, sizes, leading):
        for name, value in named:
            wrong = lie(name, value, sizes, leading) if suffix(name) and value is not None else None
            if wrong:
                self.lies.setdefault(f"{place}: {name}", wrong)


def _promised(code, result):
    """(name, array) of each result that the function's name or docstring gives a shape."""
    doc = next(iter(code.co_consts), None) or ""
    promised = [[name[0] for name in SUFFIX.finditer(text)] for text in PROMISE.findall(str(doc))]
    return [(code.co_name, result)] + [pair for names in promised
                                       for pair in zip(names, leaves(result), strict=False)]
