"""The configuration of a model and of a training run, and which values are impossible.

Both records are frozen and validate themselves, so every configuration that exists can run.
The command line makes its options from their fields, so defaults and explanations are written only once.

    model      ModelConfig: the shape of a transformer and its experts
    train      TrainConfig: steps, data, optimizer, and when to evaluate and to save
    presets    configurations that have a name
    limits     which models are impossible, and why
    fields     fields that carry their explanation, and the checks of their values
    describe   a configuration in words
    earlier    the meaning of configurations that were saved with fewer fields
    variants   the dense models that an MoE is compared with
"""

from minimoe.config.model import ModelConfig
from minimoe.config.presets import PRESETS, preset
from minimoe.config.train import TrainConfig

__all__ = ["PRESETS", "ModelConfig", "TrainConfig", "preset"]
