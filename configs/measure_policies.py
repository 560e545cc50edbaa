"""Measures policies side by side: length and ends of responses, reward against KL, perplexity, accuracy on pairs.

    python -m rlhf_jax.main --config=configs/measure_policies.py --workdir=runs/farm/measure_policies

Every policy answers the same prompts. Writes measures.csv, measures.json and measures.txt, a row for each policy, with
standard errors and Wilson intervals; responses.parquet, what was said and how it was scored; and
plots/reward_against_kl.png. Any language model can be measured, whatever method made it.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

common = module_beside(__file__, "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "measure_policies"
    c.seed = 0  # Of what is sampled.

    # NAME=FOLDER with commas between them: Hugging Face folders, or trainers' workdirs.
    c.policies = "sft=runs/farm/sft/export,dpo=runs/farm/dpo/export,ppo=runs/farm/ppo/export"
    c.reference = "runs/farm/sft/export"  # KL and implicit rewards are measured from it; "": neither is.
    c.reward_model = "runs/farm/reward_model/export"  # Scores the responses; "": nothing does.
    c.perplexity_model = "runs/farm/sft/export"  # Another language model, which reads them; "": none does.

    c.model = ConfigDict()
    c.model.score_at = ""  # Where the reward model's score stands, as in configs/score.py.
    common.computed_model(c.model)
    common.read_rewards(c.model)

    c.data = ConfigDict()
    c.data.prompts = "runs/farm/data/eval.parquet"  # Instruction records or prompt records.
    c.data.rows = 0  # The first rows only; 0 takes all.
    c.data.max_prompt_length = 36  # Tokens.
    c.data.pairs = "runs/farm/labels/labels.parquet"  # Labelled pairs that policies judge; "": none.
    c.data.pair_rows = 0  # The first of these only; 0 takes all.
    c.data.max_length = (
        72  # Tokens of prompt + response + end: of a pair's sides, and as others read responses.
    )
    c.data.too_long = "drop"  # Longer prompts: drop, or cut_prompt at their left. Longer pairs: the same.
    common.texts(c.data)
    common.responses(c.data)

    c.batch_size = 256  # Responses at a time, over all devices.
    c.max_new_tokens = 28  # The longest response.
    c.temperature = 1.0  # At any other one there is no KL: that is a mean over a policy's own responses.

    common.devices(c)
    return c
