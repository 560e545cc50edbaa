"""RRHF of Alpaca-7B on HH: four responses of diverse beam search beside the chosen and the rejected one.

    hf download tatsu-lab/alpaca-7b-wdiff --local-dir=tatsu-lab/alpaca-7b-wdiff
    python -m rlhf_jax.main --config=configs/weight_diff.py --workdir=runs/rrhf/alpaca_7b --config.base=llama-7b \\
        --config.target= --config.diff=tatsu-lab/alpaca-7b-wdiff
    python -m rlhf_jax.main --config=configs/papers/rrhf/generate.py --workdir=runs/rrhf/sampled
    python -m rlhf_jax.main --config=configs/papers/rrhf/rrhf.py --workdir=runs/rrhf/rrhf \\
        --config.data.train=train_data.json

train_data.json is what their README offers: 76,256 queries with six responses and the scores of Dahoas/gptj-rm-static,
a GPT-J whose head is in no format that `score` reads; responses of your own can be scored with a reward model of yours.

Hardware: eight accelerators of 80 GB (theirs: A100). One model is held, where PPO holds four.
A step plans 18 GiB on each, as compiled for H100.
Time: about 4 hours for Wombat-7B, whose 46,000 rows are longer (theirs); not run to its end here.
Result: reward -1.02 and perplexity 14.75 under GPT-2 medium (PPO: -1.03 and 13.84; Alpaca before: -1.18 and 14.34). As
a reward model it ranks 61.75 % of HH's pairs as people do, Alpaca 45.13 %, the reward model 68.49 % (Yuan et al. 2023).
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import sibling


def get_config() -> ConfigDict:
    c = sibling(__file__, "../../rrhf")
    c.data.train = "train_data.json"
    c.data.query = "prompt"  # Their queries hold Human: and Assistant: already.
    c.data.eval_rows = 512  # They hold out none.
    c.data.max_length = 192
    c.data.too_long = "cut_prompt"  # Theirs cuts responses to what the query leaves, which may be nothing.
    c.model.init = "runs/rrhf/alpaca_7b/export"
    c.model.dtype = "bfloat16"
    c.model.remat = "full"
    c.normalisation = "longest_row"  # As their code computed the published numbers; the paper says otherwise.
    c.batch_size = 64
    # 24 sequences per device at a time. Each gathers all weights again: 8 send four times as much.
    c.microbatches = 2
    c.epochs = 3.0
    c.optimizer.learning_rate = 2e-5
    c.optimizer.b2 = 0.999
    c.optimizer.warmup_steps = 108  # 3 % of the steps.
    c.mesh.fsdp = 8
    c.eval_every = 500
    c.save_every = 500
    return c
