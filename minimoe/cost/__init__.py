"""What a model costs: parameters, FLOPs, memory, bytes.  Counted on runs, and in closed form.

    architecture, parts     what a model is made of, and how many weights: ours (`ours`), published ones (`published`)
    counting, formula       FLOPs of a run, product by product; the same without the run
    conventions             the formulas of the papers, each under its name
    memory                  bytes that training and generation hold
    deployment, parallel    time and bytes of a token on a machine; of experts on many
    measured                a model of ours: counted, walked, traced, routed, beside the closed forms
    sheet, report           all of it for one model: as a record, as text
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
