"""Published models as data, to be counted: the table of this package, and files of the same form.

A description gives what a model is made of, never how large it is: numbers of parameters are computed.
"""

import difflib
import functools
import json
import reprlib
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from minimoe.cost import architecture, parts
from minimoe.cost.architecture import Architecture

CONVENTIONS = {"all embeddings": "active_incl_all_embeddings",
               "without the input embedding": "active_excl_input_embedding", "no embeddings": "active_non_embedding"}
"""What an active count of a paper follows -> its name among `counts`."""


class Model(NamedTuple):
    """A model to count.

    key: its name on a command line.   published: what its publishers print, as they print it: "total", "active", and
    the "convention" that the active count follows; empty for a model of a user.   source: where that is said.
    """

    key: str
    name: str
    arch: Architecture
    published: dict
    source: str


def models():
    """All models of our table: key -> Model."""
    return {model.key: model for model in _table()}


def find(key):
    """The Model of a key.  Raises ValueError with all keys if there is none."""
    table = models()
    if str(key) in table:
        return table[str(key)]
    near = difflib.get_close_matches(str(key).lower(), table, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"model = {key!r}: must be one of {', '.join(table)}{hint}")


def read_file(path):
    """The Models of a JSON file: {"models": [{"name": ..., "arch": {...}}, ...]}, or such a list, or one such record.

    Other keys of a record are ignored.  Raises ValueError with the file, and the model and the field if it is in one.
    """
    try:
        return _read(_load(path), path)
    except RecursionError:
        raise ValueError(f"{path}: is nested too deep") from None


def counts(model):
    """Parameters of a Model, as a record: in all, and active by the three conventions that papers follow."""
    return {"name": model.name} | parts.parameters(model.arch).record()


def printed(model):
    """What its publishers print, and where; "here": the active count by their convention, None if they name none.

    Empty for a model of a user.
    """
    if not model.published:
        return {}
    here = counts(model).get(CONVENTIONS.get(model.published["convention"]))
    return model.published | {"here": here, "source": model.source}


@functools.cache
def _table():
    text = resources.files(__package__).joinpath("published.json").read_text("utf-8")
    return [Model(entry["key"], entry["name"], architecture.read(entry["arch"]), entry["published"], entry["source"])
            for entry in json.loads(text)["models"]]


class _Record(dict):
    """A record of a JSON file, which remembers the fields that it says twice: name -> its values."""

    def __init__(self, pairs):
        super().__init__(pairs)
        counted = Counter(key for key, _ in pairs)
        self.twice = {key: [value for other, value in pairs if other == key] for key, n in counted.items() if n > 1}


def _load(path):
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8-sig"), parse_int=_whole, object_pairs_hook=_Record)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON in UTF-8: {error}") from None


def _whole(digits):
    """Python refuses to make an int of thousands of digits; a float is refused later, with the name of its field."""
    return int(digits) if len(digits) < 20 else float(digits)


def _read(data, path):
    entries = data.get("models", [data]) if isinstance(data, dict) else data
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'{path}: must be {{"models": [...]}}, a list of models or one model, and hold at least one')
    found = {}
    for place, entry in enumerate(entries, 1):
        where = f"{path}: model {place}"
        _check_once(entry, where)
        name = _name(entry, where)
        if name in found:
            raise ValueError(f"{where}: name = {name!r}: model {list(found).index(name) + 1} has this name too")
        found[name] = Model(name, name, _architecture(entry, f"{where}, {name!r}"), {}, str(path))
    return list(found.values())


def _check_once(record, where):
    for name, values in getattr(record, "twice", {}).items():
        raise ValueError(f"{where}: {name} = {' and '.join(map(reprlib.repr, values))}: must be said once")


def _name(entry, where):
    if not isinstance(entry, dict):
        raise ValueError(f'{where}: must be a record with "name" and "arch"')
    if "name" not in entry:
        raise ValueError(f"{where}: name: must be said")
    name = entry["name"]
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ValueError(f"{where}: name = {name!r}: must be text of one line")
    return name


def _architecture(entry, where):
    if "arch" not in entry:
        raise ValueError(f"{where}: arch: must be said")
    _check_once(entry["arch"], where)
    _check_once(getattr(entry["arch"], "get", {}.get)("mla"), f"{where}: mla")
    try:
        return architecture.read(entry["arch"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
