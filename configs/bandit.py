"""The bandit of "A Critical Evaluation of AI Feedback" (Sharma et al. 2024, figure 6): no prompt, 100 responses.

    python -m rlhf_jax.main --config=configs/bandit.py --workdir=runs/bandit

Arm k is worth k. A weak student learns from feedback on its own samples (RLAIF: a reward model of its pairs, then the
best policy for it in closed form), or imitates a strong teacher's samples (SFT). The published finding, that SFT on the
teacher's samples is above RLAIF, which is above the student, shows in 5 of 5 seeds. 20 s, 6 s of them computing, on two
CPU cores that others used too; seed 0, and over 5 seeds the mean with its 95 % interval:

              mean true reward   arg-max arm   peak probability   over seeds
    teacher            78.5440            80             0.0345   (known exactly)
    SFT                70.7049            80             0.0315   70.6978 [70.6614, 70.7341]
    RLAIF              51.8002            51             0.1341   51.7692 [51.7363, 51.8021]
    student            40.0205            40             0.0326   (known exactly)

The learned reward spans 1.4682 (over seeds 1.4647 [1.4586, 1.4707]), highest at arm 52: the reward of an arm moves
only as far as the student chooses it, so feedback does not lead to the teacher's arms. The reward model's loss in its
last step, before the update, is 0.4859 (over seeds 0.4862 [0.4857, 0.4868]). Losses are means: with sums and the same
rates, SFT's policy would sit on a single arm.

Writes bandit.json (all numbers, of every seed), bandit.csv (the first seed's curves), plots/bandit.png and report.html.
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
