"""What a model costs: parameters, FLOPs, memory, bytes.  Counted on runs, and in closed form.

    architecture   what a model is made of, in numbers
    parts          its weights, part by part, which all counts add up
    ours           our own models, described as published ones are
    published      published models, and files in the same form
    descriptions   how a field of such a description is read
    formula        FLOPs in closed form, part by part
    counting       FLOPs of a run, product by product
    places         where in a model the program is
    conventions    the formulas of the papers, each under its name
    memory         bytes that training and generation hold
    peak           the most bytes that a training step holds at once
    deployment     time and bytes of a token on a machine
    all_to_all     experts on many devices: what they exchange, and how long that takes
    measured       a model of ours, counted and measured next to the closed forms
    sheet          all costs of one model, as a record
    report         the record in words and tables
    answers        the command `cost`: of which models, and how the answer is written
"""

from minimoe.cost import ours, parts
from minimoe.cost.counting import Cost, Product, count, count_run, counted, products
from minimoe.cost.memory import Memory, peak_bytes, step_memory
from minimoe.cost.parts import Parameters

__all__ = ["Cost", "Memory", "Parameters", "Product", "count", "count_parameters", "count_run", "counted", "peak_bytes",
           "products", "step_memory"]


def count_parameters(config):
    """Total and active Parameters of a ModelConfig."""
    return parts.parameters(ours.architecture(config))
