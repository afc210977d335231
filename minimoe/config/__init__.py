"""What a model is, what a training run is, and which values are impossible.

Both records are frozen and check themselves, so a configuration that exists is one that can run.
The command line makes its options from their fields, so a default or an explanation is written only once.

    model      ModelConfig: the shape of a transformer and its experts
    train      TrainConfig: steps, data, optimizer, and when to evaluate and to save
    presets    configurations that have a name
    limits     which models are impossible, and why
    fields     what a field says for itself, and the checks of its values
    describe   a configuration in words
    earlier    what a configuration meant that was saved before it had all fields
    variants   the dense models that an MoE is compared with
"""

from minimoe.config.model import ModelConfig
from minimoe.config.presets import PRESETS, preset
from minimoe.config.train import TrainConfig

__all__ = ["PRESETS", "ModelConfig", "TrainConfig", "preset"]
