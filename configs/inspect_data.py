"""Shows training data as a trainer sees it: some rows with the trained tokens marked, what is left out, lengths.

    python -m rlhf_jax.main --config=configs/inspect_data.py --workdir=runs/inspect_data

Trained tokens are green on a terminal and in [[double brackets]] elsewhere, or when NO_COLOR is set. Needs neither a
model nor an accelerator; `WORKDIR/inspection.txt` keeps the report. `:pairs` and `:prompts` look at the data of DPO
and PPO, `:chat` at conversations through a chat model's own template.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

common = module_beside(__file__, "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "pairs": pairs, "prompts": prompts, "chat": chat})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "inspect_data"
    c.seed = 0  # Chooses the rows and the examples.

    c.data = ConfigDict()
    c.data.path = "runs/farm/data/sft.parquet"  # Records of any layout.
    c.data.kind = "auto"  # instruction, pair or prompt; auto tells by the columns.
    c.data.rows = 0  # So many rows, drawn with the seed; 0 takes all.
    c.data.max_length = 56  # What a trainer's limit would cut or drop is counted.
    # Longer rows: drop, cut_response, cut_prompt; "": as the kind's trainers do by default.
    c.data.too_long = ""
    common.texts(c.data)
    common.responses(c.data)

    c.tokenizer = "runs/farm/data/tokenizer"  # A folder with one, such as a model's, or a name on the hub.

    c.examples = 3  # Rows that are shown.
    c.bins = 16  # Lines of a histogram, at most.
    return c


def pairs() -> ConfigDict:
    c = microfarm()
    c.data.path = "runs/farm/labels/labels.parquet"
    return c


def prompts() -> ConfigDict:
    c = microfarm()
    c.data.path = "runs/farm/data/unlabeled.parquet"
    c.data.kind = "prompt"
    c.data.max_length = 36
    return c


def chat() -> ConfigDict:
    c = microfarm()
    c.data.path = "HuggingFaceH4/ultrachat_200k:train_sft"
    c.data.rows = 2000
    c.data.template = "chat"
    c.data.max_length = 2048
    c.tokenizer = "HuggingFaceH4/zephyr-7b-beta"
    return c
