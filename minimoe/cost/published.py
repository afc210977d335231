"""Published models as data: the table of this package.

It describes what a model is made of, not how large it is: numbers of parameters are computed.
"""

import functools
import json
import re
from importlib import resources

from minimoe.cost import architecture, model_files, parts

CONVENTIONS = {"all embeddings": "active_incl_all_embeddings",
               "without the input embedding": "active_excl_input_embedding", "no embeddings": "active_non_embedding"}
"""Convention of a paper's active count -> its name among `counts`."""


def models():
    """All models of the table: key -> Model."""
    return {model.key: model for model in _table()}


def find(key):
    """The Model of a key.  Raises ValueError with the most similar key, or with all keys if none is similar."""
    table = models()
    named = [known for known in table if _without_numbers(known) != _without_numbers(key)]  # gpt-2 is no gpt-4
    near = architecture.did_you_mean(key, named)
    architecture.check(key in table, "model", key, f"is not in the table{near} (`cost --list` shows it)" if near else
                       f"must be one of {', '.join(table)}")
    return table[key]


def _without_numbers(key):
    return re.sub(r"\d", "", str(key).lower())


def counts(model):
    """Parameters of a Model, as a record: in total, and active by the three conventions that papers follow."""
    return {"name": model.name} | parts.parameters(model.arch).record()


def printed(model):
    """The counts that its publishers give, and where; "here": our active count by their convention, None if unknown.

    Empty for a user's model.
    """
    if not model.published:
        return {}
    here = counts(model).get(CONVENTIONS.get(model.published["convention"]))
    return model.published | {"here": here, "source": model.source}


@functools.cache
def _table():
    text = resources.files(__package__).joinpath("published.json").read_text("utf-8")
    return [model_files.Model(entry["key"], entry["name"], model_files.read_architecture(entry["arch"]),
                              entry["published"], entry["source"]) for entry in json.loads(text)["models"]]
