"""The bandit of "A Critical Evaluation of AI Feedback" (Sharma et al. 2024, figure 6): no prompt, 100 responses.

python -m rlhf_jax.main --config=configs/bandit.py --workdir=runs/bandit
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "figure_6") -> ConfigDict:
    return choose_variant(variant, {"figure_6": figure_6})


def figure_6() -> ConfigDict:
    c = ConfigDict()
    c.job = "bandit"
    c.seed = 0  # The first seed, whose numbers and curves are shown.
    c.n_seeds = 5  # So many from it on are run; means and intervals are over all of them.
    c.arms = 100  # Arm k, from 0 on, is worth k.
    c.spread = 300.0  # Teacher and student choose arm k in proportion to exp(-(k - peak)^2 / spread).

    c.teacher = ConfigDict()
    c.teacher.peak = 80.0  # The arm that the teacher chooses most.
    c.teacher.samples = 250_000  # Its samples that SFT imitates.

    c.student = ConfigDict()
    c.student.peak = 40.0  # The arm that the student chooses most.
    c.student.pairs = 250_000  # Of two of its samples each, labelled by which arm is worth more.

    c.reward_model = ConfigDict()
    c.reward_model.steps = 7500  # Of gradient descent on all pairs at once, from rewards of 0.
    c.reward_model.learning_rate = 0.01  # Of the mean loss of a pair.

    c.sft = ConfigDict()
    c.sft.steps = 15_000  # Of gradient descent on all samples at once, from logits of 0.
    c.sft.learning_rate = 0.01  # Of the mean loss of a sample.

    c.beta = 0.1  # What KL from the student costs: RLAIF's policy is student * exp(reward / beta) / Z.
    return c
