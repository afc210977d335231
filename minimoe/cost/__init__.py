"""What a model costs: parameters, FLOPs, memory, bytes.  Counted on runs, and in closed form.

    architecture  the description of a model: its keys and their values
    model_files   models described in JSON files
    huggingface   Hugging Face's config.json, read as a description
    published     the table of published models
    ours          a model of ours, described as published ones are
    parts         the weights part by part, and their numbers of parameters
    places        which part of the model is running
    counting      FLOPs of a run, product by product
    formula       the same in closed form
    conventions   training FLOPs by the formulas of the papers, each under its name
    sparse        a model with masks: what they save, and FLOPs of sparse training by the papers' formulas
    memory        bytes that training and generation need
    peak          the peak memory of a training step
    deployment    bytes and time of a decoding step on a machine
    all_to_all    expert parallelism: what the devices send, and how long the slowest takes
    measured      a model of ours: counted, measured and routed, compared with the closed forms
    sheet         all costs of one model, as a record
    report        that record as text
    quantities    numbers as short text
    answers       the command `cost`
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
