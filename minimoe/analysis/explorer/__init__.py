"""The router explorer: an HTML page that shows how a text is routed, and on which the rules can be changed.

The page computes the routing itself, from scores that are recorded here.  `arithmetic.js` repeats `minimoe/moe`, and
tests make sure that the two agree.  The page needs no network.

    recording   the page's data: the numbers of every router on every text, and the settings of the run
    rules       how each router decides in evaluation, in the few terms that the page can compute
"""

import json
from importlib import resources
from string import Template

from minimoe import files
from minimoe.analysis.explorer import recording

SCRIPTS = ("arithmetic.js", "tokens.js", "ledger.js", "load.js", "path.js", "factor.js", "view.js")
"""The scripts in the order in which they run; the last one starts the page."""

MOST_BYTES = 2_000_000


def page(state, texts=None, run="run"):
    """The page of a trained run, as HTML.

    state: a TrainState.  texts: each is a separate sequence; None is a bit of English and Python.  run: its name.
    Raises ValueError for a model without routers, for a text that is empty, too long or has unknown characters, and if
    the page would be larger than MOST_BYTES.
    """
    config, tokenizer = state.model_config, state.tokenizer
    texts = texts or recording.default_texts(tokenizer, config)
    data = recording.record(state.params, config, tokenizer, texts, run)
    html = Template(_read("page.html")).substitute(
        style=_read("page.css"), script="\n".join(map(_read, SCRIPTS)), data=escaped(data))
    size = len(html.encode())
    if size > MOST_BYTES:
        raise ValueError(f"the page of {len(texts)} texts would have {size:,} bytes, more than {MOST_BYTES:,}: give "
                         "fewer or shorter texts")
    return html


def escaped(data):
    """JSON that is safe inside a script element: ASCII, without the character that could end the element."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", r"\u003c")


def check_path(path):
    """Raise ValueError unless the path is that of an HTML file."""
    files.check_ending(path, "the page", ".html")


def save(html, path):
    """Write a page, completely or not at all.

    Raises ValueError if the path does not end in .html, or the folder or the disk does not allow it.
    """
    check_path(path)
    with files.written(path, "the page") as temporary:
        temporary.write_text(html, encoding="utf-8", newline="\n")


def _read(name):
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
