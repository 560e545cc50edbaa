"""The command that makes a missing input, for the error message that says it is missing."""

from pathlib import Path

FARM = "python -m rlhf_jax.main --config=configs/farm.py --workdir=runs/farm"
SFT = "python -m rlhf_jax.main --config=configs/sft.py --workdir=runs/farm/sft"
PAIRS = "python -m rlhf_jax.main --config=configs/generate.py:pairs --workdir=runs/farm/pairs"
LABELS = "python -m rlhf_jax.main --config=configs/annotate.py --workdir=runs/farm/labels"
REWARD_MODEL = "python -m rlhf_jax.main --config=configs/reward_model.py --workdir=runs/farm/reward_model"
OUTPUTS = "python -m rlhf_jax.main --config=configs/generate.py --workdir=runs/farm/outputs/sft"
SCORES = "python -m rlhf_jax.main --config=configs/score.py --workdir=runs/farm/scores"


def outputs(name: str, path: str) -> str:
    """The command that writes a method's file of the farm's layout; "" for a file no job of ours writes."""
    file = Path(path)
    if file.name == "outputs.parquet":
        model = file.parent.parent.parent / name / "export"
        return (
            f"{OUTPUTS.rsplit(' --workdir', 1)[0]} --workdir={file.parent} "
            f"--config.model.path={model} --config.model.name={name}"
        )
    return FARM if file.name == "eval.parquet" else ""
