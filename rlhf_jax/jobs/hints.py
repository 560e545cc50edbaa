"""The command that makes a missing input, for the error message that says it is missing."""

FARM = "python -m rlhf_jax.main --config=configs/farm.py --workdir=runs/farm"
SFT = "python -m rlhf_jax.main --config=configs/sft.py --workdir=runs/farm/sft"
PAIRS = "python -m rlhf_jax.main --config=configs/generate.py:pairs --workdir=runs/farm/pairs"
LABELS = "python -m rlhf_jax.main --config=configs/annotate.py --workdir=runs/farm/labels"
REWARD_MODEL = "python -m rlhf_jax.main --config=configs/reward_model.py --workdir=runs/farm/reward_model"
OUTPUTS = "python -m rlhf_jax.main --config=configs/generate.py --workdir=runs/farm/outputs/sft"
