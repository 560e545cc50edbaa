"""Direct preference optimisation on pairwise labels, starting from and anchored to the SFT model.

    python -m rlhf_jax.main --config=configs/dpo.py --workdir=runs/farm/dpo
    python -m rlhf_jax.main --config=configs/dpo.py:simpo --workdir=runs/farm/simpo

Reference log-probs are computed once, before the first step, and kept on disk: other runs on the same pairs from the
same model (another beta, another learning rate) read them.

What all trainers share stands in configs/common.py; the papers' recipes in configs/papers/.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

common = module_beside(__file__, "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(
        variant, {"microfarm": microfarm, "ipo": ipo, "simpo": simpo, "orpo": orpo, "alpaca": alpaca}
    )


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "dpo"
    c.seed = 0  # Of the rows that are drawn, and their order.

    c.data = ConfigDict()
    c.data.train = "runs/farm/labels/labels.parquet"  # Pairwise labels.
    c.data.eval = ""  # Pairwise labels; "" holds out eval_rows of the training rows, by prompt.
    c.data.eval_rows = 300  # At most this many pairs, drawn with the seed.
    c.data.max_length = 56  # Tokens of prompt + response + end, of either side.
    # Longer pairs: drop, cut_response (no end then), or cut_prompt at its left, too.
    c.data.too_long = "drop"
    # auto: a step's batch_size pairs in as few array rows as hold them, with the same loss; on: as many pairs as fit
    # into twice max_length tokens are a row, and batch_size counts those; off.
    c.data.packing = "auto"
    common.pair_rows(c.data)
    common.training_rows(c.data)
    common.texts(c.data)
    common.responses(c.data)

    c.model = ConfigDict()
    c.model.init = "runs/farm/sft/export"  # Policy at step 0, and the frozen reference.
    common.trained_model(c.model)

    common.lora(c)

    # sigmoid (DPO), sigmoid_mean (per token), robust, hinge, ipo_sum, ipo_mean, simpo or orpo.
    c.loss = "sigmoid"
    # Log-probs computed once, kept on disk; or step: a second model in memory; or none: of the policy alone.
    c.reference = "cached"
    c.reference_cache = ""  # Folder of what is kept; "" is rlhf_jax/reference in the user's cache folder.
    c.beta = 0.05  # Strength of the pull towards the reference; with orpo, weight of the odds ratio.
    c.label_smoothing = 0.0  # Assumed share of flipped labels (conservative DPO, robust); 0: none.
    c.simpo_gamma = 0.0  # With simpo, the margin by which beta times the mean log-probs should differ.
    c.sft_coef = 0.0  # So many times the chosen response's NLL is added to the loss,
    c.sft_nll = "mean"  # that of its average token (RPO), or the sum over its tokens (dpo-rlaif).
    # Weight of each pair: none, rejected (policy / reference of that response) or wpo (the policy's own likelihood).
    c.importance = "none"

    c.batch_size = 32  # Pairs per step, over all devices.
    c.epochs = 1.0  # Passes over the pairs; may be a part of one.
    common.optimizer(c, learning_rate=2e-4, warmup_steps=10)

    c.logprob_chunk = 128  # Positions whose logits exist at one time.
    common.devices(c)
    common.rhythm(c, log_every=10, eval_every=150, save_every=150)
    common.sampled_win_rate(c, max_prompt_length=36, max_new_tokens=28)
    return c


def ipo() -> ConfigDict:
    """Identity preference optimisation as its paper writes it: responses should differ by 1 / (2 beta) = 5 nats."""
    c = microfarm()
    c.loss = "ipo_sum"
    c.beta = 0.1
    return c


def simpo() -> ConfigDict:
    """SimPO, with its authors' beta and gamma for Llama-3-8B: no reference, mean log-probs."""
    c = microfarm()
    c.loss = "simpo"
    c.beta = 2.0
    c.simpo_gamma = 1.0
    return c


def orpo() -> ConfigDict:
    """ORPO: NLL of the chosen response and beta times the odds ratio; no reference, so any model to start from."""
    c = microfarm()
    c.loss = "orpo"
    c.beta = 0.1
    return c


def alpaca() -> ConfigDict:
    c = microfarm()
    c.data.train = "labels.parquet"
    c.data.template = "alpaca"
    c.data.max_length = 768
    c.model.init = "runs/alpaca/sft/export"
    c.batch_size = 8
    c.epochs = 1.0
    c.optimizer.learning_rate = 2e-5
    return c
