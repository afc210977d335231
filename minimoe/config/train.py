"""The configuration of a training run, and which runs are impossible."""

import math
from dataclasses import dataclass

from minimoe.config import fields

DYNAMICS = {
    "static": "random ones, which stay fixed",
    "set": "the smallest weights of each sign are dropped, new ones grow at random (SET)",
    "rigl": "the smallest are dropped, new ones grow where the gradient is largest (RigL)",
    "snfs": "like rigl, with the mean gradient, and weights move between matrices (SNFS)",
    "gradual": "dense at first, then the smallest are dropped, fewer each time (Zhu & Gupta)",
    "movement": "like gradual, but the weights that training moves toward 0 are dropped",
}
"""Value of `dynamic` -> how the masks of a sparse run change."""
DENSITIES = {
    "uniform": "the same for each matrix",
    "erdos_renyi": "small matrices are denser; each expert's matrix counts on its own",
    "erdos_renyi_stack": "the same, but the stacked matrices of a layer's experts count as one",
}
"""Value of `density` -> how the weights of a sparse run are spread over the matrices."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run: its length, the data per step, the optimizer, and when to evaluate and save.

    Raises ValueError with the field, its value and the reason for any value that cannot work.
    """

    n_steps: int = fields.option(1000, "optimizer steps", "steps")
    batch: int = fields.option(12, "sequences in a micro-batch", "sequences")
    sequence: int = fields.option(64, "length of a training sequence", "tokens")
    groups: int = fields.option(
        1, "groups of a micro-batch, each with its own capacity and balance; they run in parallel", "groups")
    accumulate: int = fields.option(1, "micro-batches whose gradients are averaged into one step", "micro-batches")
    learning_rate: float = fields.option(3e-3, "peak learning rate", "1/step")
    min_learning_rate: float | None = fields.option(
        None, "learning rate at the last step; none: a tenth of the peak", "1/step")
    warmup_steps: int | None = fields.option(
        None, "steps over which the learning rate rises from 0; none: 100, or half of a shorter run", "steps")
    weight_decay: float = fields.option(
        0.1, "decoupled decay of matrices; gains do not decay", "1/step per learning rate")
    beta1: float = fields.option(0.9, "decay rate of AdamW's mean gradient", "1")
    beta2: float = fields.option(0.99, "decay rate of AdamW's mean squared gradient", "1")
    adam_eps: float = fields.option(1e-8, "added to the root mean square gradient", "nats per unit of the weight")
    clip_norm: float = fields.option(
        1.0, "largest norm of the gradient of all parameters together", "nats per unit of the weight")
    eval_every: int = fields.option(100, "steps between evaluations on the held-out text", "steps")
    eval_batches: int = fields.option(40, "batches of one evaluation, the same ones every time", "batches")
    record_every: int = fields.option(10, "steps between two records of the router's statistics", "steps")
    checkpoint_every: int = fields.option(100, "steps between checkpoints", "steps")
    seed: int = fields.option(0, "seed of the initial weights and of the order of the data")
    sparsity: float = fields.option(
        0.0, "share of the weights of attention and feed-forward networks that are zero; 0 is a dense run", "1")
    dynamic: str = fields.option("static", "which weights are zero in a sparse run")
    density: str = fields.option("uniform", "how a sparse run spreads its weights over the matrices")
    sparsity_every: int = fields.option(100, "steps between two changes of the masks", "steps")
    drop_fraction: float = fields.option(
        0.3, "share of its weights that a matrix exchanges at the first change; falls along a cosine to 0", "1")
    sparsity_end: float = fields.option(0.75, "share of the steps after which the masks stay fixed", "1")

    def __post_init__(self):
        fields.require_counts(self, ("n_steps", "batch", "sequence", "groups", "accumulate", "eval_every",
                                     "eval_batches", "record_every", "checkpoint_every", "sparsity_every"))
        fields.check(self, "groups", self.batch % self.groups == 0,
                     f"must divide batch = {self.batch}; 1 is the whole batch")
        if self.warmup_steps is None:
            object.__setattr__(self, "warmup_steps", min(100, self.n_steps // 2))  # runs are compared by it
        fields.require_numbers(self, ("learning_rate", "adam_eps", "clip_norm", "sparsity_end"), positive=True)
        fields.require_numbers(self, ("weight_decay", "warmup_steps", "beta1", "beta2", "sparsity", "drop_fraction"),
                               positive=False)
        fields.require_whole(self, ("warmup_steps", "seed"))
        for name in ("beta1", "beta2"):
            fields.check(self, name, getattr(self, name) < 1, "must be below 1")
        if self.min_learning_rate is not None:
            fields.require_numbers(self, ("min_learning_rate",), positive=False)
            fields.check(self, "min_learning_rate", self.min_learning_rate <= self.learning_rate,
                         f"must not be above learning_rate = {self.learning_rate}")
        self._check_sparsity()

    def _check_sparsity(self):
        fields.check(self, "sparsity", self.sparsity < 1, "must be a share of the weights, from 0 to below 1")
        fields.require_name(self, "dynamic", DYNAMICS)
        fields.require_name(self, "density", DENSITIES)
        for name in ("drop_fraction", "sparsity_end"):
            fields.check(self, name, getattr(self, name) <= 1, "must be at most 1")
        if self.dynamic != "static":
            fields.check(self, "dynamic", self.sparsity > 0, "needs a sparsity above 0")
            fields.check(self, "sparsity_every", self.last_mask_step > 0, "the masks would never change before step "
                         f"{self.sparsity_end * self.n_steps:g}, sparsity_end * n_steps")

    @property
    def last_mask_step(self):
        """The last step, counted from 1, that changes the masks of a sparse run: before sparsity_end * n_steps."""
        return (math.ceil(self.sparsity_end * self.n_steps) - 1) // self.sparsity_every * self.sparsity_every

    @property
    def n_mask_changes(self):
        """How often the masks of a run change."""
        return 0 if self.dynamic == "static" else self.last_mask_step // self.sparsity_every

    @property
    def last_learning_rate(self):
        """Learning rate at the last step, with the default filled in: a tenth of the peak."""
        return self.learning_rate / 10 if self.min_learning_rate is None else self.min_learning_rate
