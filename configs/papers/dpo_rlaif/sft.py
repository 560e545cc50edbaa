"""dpo-rlaif's SFT of Mistral-7B on the first tenth of ShareGPT, with GPT-3.5's answers.

    hf download mistralai/Mistral-7B-v0.1 --local-dir=mistralai/Mistral-7B-v0.1
    hf download TRI-ML/dpo-rlaif-data ShareGPT_V3_unfiltered_cleaned_split_no_imsorry.json \\
        --repo-type=dataset --local-dir=TRI-ML/dpo-rlaif-data
    jq -c '.[:(length / 10 | floor)][] | .conversations | select(.[0].from == "human" and .[1].from == "gpt")
        | {instruction: .[0].value, output: .[1].value}' \\
        TRI-ML/dpo-rlaif-data/ShareGPT_V3_unfiltered_cleaned_split_no_imsorry.json > TRI-ML/dpo-rlaif-data/tenth.jsonl
    python -m rlhf_jax.main --config=configs/papers/dpo_rlaif/sft.py --workdir=runs/dpo_rlaif_mistral7b/sft

Hardware: eight accelerators of 80 GB (theirs: A100).
A step plans 14 GiB on each, as compiled for CPUs.
Time: about 2 h with their code (its README); not run to its end here.
Result: AlpacaEval win rate against text-davinci-003, judged by GPT-4, of 55.1 % (standard error 1.5 to 1.8); 56.8 %
with all of ShareGPT, 75.3 % with GPT-4's answers (Sharma et al. 2024, figure 2). Other models of the figure are
other values of model.init: 10 % gives LLaMA-7B 42.6 %, Yi-6B 49.0 %, LLaMA2-13B 58.5 %.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import sibling


def get_config() -> ConfigDict:
    c = sibling(__file__, "../../sft")
    c.data.train = "TRI-ML/dpo-rlaif-data/tenth.jsonl"
    c.data.eval = ""  # Theirs is a part of the training prompts.
    c.data.eval_rows = 64
    c.data.template = "human_assistant"  # With the BOS that their code leaves out.
    c.data.max_length = 512
    c.data.too_long = "cut_prompt"  # To 256 tokens, then responses, as they do.
    c.model.init = "mistralai/Mistral-7B-v0.1"
    c.model.pad_token = "[PAD]"
    c.model.dtype = "bfloat16"
    c.model.remat = "full"
    c.batch_size = 8
    c.epochs = 9.0  # They look at epochs 3, 6 and 9, and at rates of 1e-7, 5e-7 and 1e-6, and keep the best.
    # Their loss is a response's sum and not the mean over tokens: long responses count for more.
    c.optimizer.name = "rmsprop"
    c.optimizer.b1 = 0.0
    c.optimizer.b2 = 0.99
    c.optimizer.learning_rate = 1e-6
    c.optimizer.schedule = "constant"
    c.optimizer.warmup_steps = 0
    c.optimizer.max_grad_norm = 10.0
    c.mesh.fsdp = 8
    c.eval_every = 625  # 5000 examples.
    c.save_every = 625
    return c
