"""Reads models that are described in JSON files.

A file is {"models": [...]}, such a list, or one record: {"name": "mine", "arch": {"vocab": 32000, ...}}.  The keys of
"arch" are the fields of `Architecture`, and those of its "mla" are the fields of `Latent`; only the values documented
there are allowed, and null leaves a key at its default.  Records can have additional keys, such as "source", which are
not read.  A file can also be the `config.json` of a Hugging Face model, which `huggingface` reads.  Llama 3, with
8,030,261,248 parameters:

    {"name": "Llama-3-8B", "arch": {"vocab": 128256, "d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8,
                                    "dense_ffn_hidden": 14336}}

`published.json` has an example of almost every key.
"""

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import NamedTuple

from minimoe import files
from minimoe.cost import architecture, huggingface
from minimoe.cost.architecture import Architecture, Latent

REMARKS = ("aux_coef_hf", "lb_coef", "z_coef", "groups", "group_limit", "route_scale", "batch", "dropout", "lr",
           "optimizer", "iters")
"""Keys of "arch" that do not affect the cost: how a model is trained, and the scale of its gates."""

FOREIGN = {"model_type", "architectures", "hidden_size", "num_hidden_layers"}
"""Keys that identify a `config.json`."""

LISTS = ("attention", "dense_layers")
"""Keys of "arch" whose values are lists."""


LARGEST_FILE = 1 << 26
"""Largest size of a file in bytes; descriptions of models have a few thousand."""


class Model(NamedTuple):
    """A model to count.

    key: its name on a command line.
    name: its name in tables.
    arch: its Architecture.
    published: the counts that its publishers give, as printed: "total", "active", and the "convention" of the active
        count; empty for a user's model.
    source: where they are printed, or the file.
    remark: what of the file is left out, in words.
    """

    key: str
    name: str
    arch: Architecture
    published: dict
    source: str
    remark: str = ""


def read_file(path):
    """The Models of a JSON file.  Raises ValueError with the file, and the model and the key if it is in one."""
    try:
        files.check_regular(path, LARGEST_FILE)
        text = Path(path).read_bytes().decode("utf-8-sig")
        return _models(json.loads(text, object_pairs_hook=_record), path)
    except OSError as error:
        reason = error.strerror or error
    except RecursionError:
        reason = "is nested too deeply"
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        reason = f"is not JSON in UTF-8: {error}"
    except ValueError as error:
        reason = error
    raise ValueError(f"{path}: {reason}")


def read_architecture(record):
    """The Architecture of the dict of "arch".  Raises ValueError for unknown or missing keys, and for bad values."""
    if not isinstance(record, dict):
        raise ValueError(f"arch = {record!r}: must be a record of keys")
    given = _given(record, Architecture, REMARKS)
    if isinstance(given.get("mla"), dict):
        given["mla"] = Latent(**_given(given["mla"], Latent, prefix="mla."))
    listed = {name: tuple(value) for name, value in given.items() if name in LISTS and isinstance(value, list)}
    return Architecture(**given | listed)


def _given(record, described, remarks=(), prefix=""):
    """The fields of a dataclass for which a record has a value.

    record: dict.   described: the dataclass.   remarks: keys that are ignored.   prefix: of keys in messages.
    """
    known = {f.name: f.default is MISSING for f in fields(described)}
    for key, value in record.items():
        hint = architecture.did_you_mean(key, (*known, *remarks)) or f"; the keys are {', '.join((*known, *remarks))}"
        architecture.check(key in known or key in remarks, prefix + key, value, f"there is no such key{hint}")
    for key, required in known.items():
        architecture.check(not required or record.get(key) is not None, prefix + key, None, "is required")
    return {key: value for key, value in record.items() if key in known and value is not None}


def _record(pairs):
    record = {}
    for key, value in pairs:
        architecture.check(key not in record, key, value, "is given twice in one record")
        record[key] = value
    return record


def _models(data, path):
    if isinstance(data, dict) and not {"models", "arch"} & data.keys() and FOREIGN & data.keys():
        name, arch = huggingface.read(data, path)
        return [Model(name, name, arch, {}, str(path), huggingface.remark(data))]
    entries = data.get("models", [data]) if isinstance(data, dict) else data
    if not isinstance(entries, list) or not entries:
        raise ValueError('must be {"models": [...]}, a list of models or one model, and hold at least one; or the '
                         'config.json of a Hugging Face model')
    found = {}
    for place, entry in enumerate(entries, 1):
        try:
            model = _model(entry, path)
            architecture.check(model.name not in found, "name", model.name, "an earlier model already has this name")
        except ValueError as error:
            name = f", {entry['name']!r}" if isinstance(entry, dict) and "name" in entry else ""
            raise ValueError(f"model {place}{name}: {error}") from None
        found[model.name] = model
    return list(found.values())


def _model(entry, path):
    if not isinstance(entry, dict) or not {"name", "arch"} <= entry.keys():
        raise ValueError('must be a record with "name" and "arch"')
    name = entry["name"]
    one_line = isinstance(name, str) and name.strip() and name.isprintable()
    architecture.check(one_line, "name", name, "must be a single line of text")
    return Model(name, name, read_architecture(entry["arch"]), {}, str(path))
