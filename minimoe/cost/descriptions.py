"""How people write a field of a description, brought to the one way that an `Architecture` knows.

What is not understood stays as it was written: the Architecture refuses it, and its message shows what stands there.
"""

import re

SPELLINGS = {
    "sinks": {True: "1 per head", "per head": "1 per head"},
    "shared_gate": {True: "sigmoid"},
    "pos": {"rope": "rotary", "alibi": "none", "sinusoidal": "none", "nope": "none"},
}
"""Field -> other words for its choices.  Positions without weights are "none" to a count."""


def plain(field, value):
    """A value of a JSON file as its field (of dataclasses.fields) takes it.

    Counts may be floats such as 1000.0.  Choices may be written in capitals, and with "-", "_", a space or nothing
    between their words.  Biases may be a list of words, "all" or "none".
    """
    if "least" in field.metadata:
        exact = isinstance(value, float) and value.is_integer() and 0 <= value < 2**53
        return int(value) if exact else value
    if "choices" in field.metadata:
        return _choice(field, value)
    if field.name == "biases":
        return _biases(value, field.metadata["words"])
    if field.name == "encoder_decoder" and isinstance(value, str):
        return "+".join(number.strip() for number in value.split("+"))
    return value


def _choice(field, value):
    others = SPELLINGS.get(field.name, {})
    if value is True:
        return others.get(True, True)
    if not isinstance(value, str):
        return value
    known = {choice: choice for choice in field.metadata["choices"]} | others
    return {_bare(words): choice for words, choice in known.items() if words is not True}.get(_bare(value), value)


def _bare(words):
    return re.sub(r"[-_\s]", "", str(words)).lower()


def _biases(value, known):
    listed = isinstance(value, list) and all(isinstance(word, str) for word in value)
    if not isinstance(value, str) and not listed:
        return value
    text = re.sub(r"[-_\s]+", " ", "+".join(value) if listed else value).strip().lower()
    if text in ("all", "none"):
        return True if text == "all" else None
    start = "all but " if text.startswith("all but ") else ""
    named = [word.strip() for word in text.removeprefix(start).split("+")]
    return start + "+".join(named) if all(word in known for word in named) else value
