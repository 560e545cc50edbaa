"""A world of sixteen words: a tokenizer that knows them and nothing else, models of one layer, a few rows.

Nothing in it depends on a random generator of jax or on how a tokenizer is trained, so numbers that are written down
in a test stay what they are.
"""

from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tiny_farm
from ml_collections import ConfigDict
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf_jax.data.files.tables import write_jsonl
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.huggingface import export_folder, import_folder

WORDS = [f"w{i}" for i in range(16)]
UNKNOWN, PAD, BOS, EOS = "[UNK]", "[PAD]", "<s>", "</s>"
VOCABULARY = {word: i for i, word in enumerate((UNKNOWN, PAD, BOS, EOS, *WORDS))}
CONFIG = ModelConfig(vocab_size=len(VOCABULARY), width=8, layers=1, heads=2, kv_heads=1, head_dim=4, ff=16)
REWARD_MEAN = 0.25


def build(folder: Path) -> Path:
    """Writes the tokenizer, a language model and a reward model; returns `folder`."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN
    ).save_pretrained(folder / "tokenizer")
    for name, scalar in (("language", False), ("reward", True)):
        export_folder.save_folder(
            folder / name,
            CONFIG,
            draw_params(scalar=scalar, seed=int(scalar)),
            token_ids={f"{x}_token_id": VOCABULARY[y] for x, y in (("pad", PAD), ("bos", BOS), ("eos", EOS))},
            tokenizer_from=folder / "tokenizer",
            reward_mean=REWARD_MEAN if scalar else None,
        )
    return folder


def draw_params(*, scalar: bool, seed: int) -> decoder.Params:
    """Weights larger than at birth, so that attention, gates and log-probs vary as in a trained model."""
    rng = np.random.RandomState(seed)  # The one generator of NumPy whose numbers never change.

    def draw(path: tuple, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        name, noise = path[-1].key, rng.normal(size=shape.shape)
        return np.float32({"scale": 1 + 0.1 * noise, "embed": noise}.get(name, noise * CONFIG.width**-0.5))

    shapes = nn.unbox(decoder.shapes(CONFIG, scalar=scalar))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def sentences(count: int, longest: int, seed: int) -> list[str]:
    """So many texts of one to `longest` words."""
    rng = np.random.RandomState(seed)
    return [" ".join(rng.choice(WORDS, rng.randint(1, longest + 1))) for _ in range(count)]


def demonstrations(count: int, seed: int) -> list[dict]:
    prompts, outputs = sentences(count, 5, seed), sentences(count, 4, seed + 1)
    return [{"prompt": prompt, "output": output} for prompt, output in zip(prompts, outputs, strict=True)]


def pairs(count: int, seed: int) -> list[dict]:
    """Prompts with two answers of which the first is preferred, and every other row the other way round."""
    prompts, good, bad = (sentences(count, 4, seed + i) for i in range(3))
    return [
        {"prompt": prompt, f"output_{1 + i % 2}": one, f"output_{2 - i % 2}": two, "preference": 1 + i % 2}
        for i, (prompt, one, two) in enumerate(zip(prompts, good, bad, strict=True))
    ]


def scored(count: int, seed: int) -> list[dict]:
    """Prompts with two to four responses; scores are whole numbers, so that some of them are equal."""
    rng = np.random.RandomState(seed)
    rows = []
    for i, prompt in enumerate(sentences(count, 5, seed + 1)):
        said = sentences(rng.randint(2, 5), 4, 100 * seed + i)
        rows.append({"prompt": prompt, "responses": said, "scores": rng.randint(0, 4, len(said)).tolist()})
    return rows


def settings(job: str, folder: Path, rows: dict[str, list[dict]], **changes) -> ConfigDict:
    """The page of a job on these rows; rows: records by the field of the page that names their file."""
    files = {}
    for field, records in rows.items():
        files[field] = str(folder / f"{field.replace('.', '_')}.jsonl")
        write_jsonl(files[field], records)
    prompts_alone = job in ("ppo", "grpo", "rrhf_online", "generate")
    short = {"data.max_prompt_length" if prompts_alone else "data.max_length": 12}
    return tiny_farm.settings(job, folder, **short, **files, **changes)


class Row(NamedTuple):
    """Token ids of a prompt and its response, the end token included."""

    prompt: list[int]
    response: list[int]


def encoded(prompt: str, response: str) -> Row:
    return Row(
        [VOCABULARY[x] for x in (BOS, *prompt.split())], [VOCABULARY[x] for x in (*response.split(), EOS)]
    )


def load(folder: Path) -> decoder.Params:
    """The weights of a model folder, in NumPy."""
    return jax.tree.map(np.asarray, import_folder.load(folder)[1])


def reward_mean(folder: Path) -> float:
    """What readers of a reward model subtract."""
    return import_folder.describe_folder(folder).reward_mean


def hidden(params: decoder.Params, row: Row) -> np.ndarray:
    tokens = jnp.asarray([[*row.prompt, *row.response]], jnp.int32)
    return np.float64(_hidden(jax.tree.map(jnp.asarray, params), tokens))[0]


_hidden = jax.jit(lambda params, tokens: decoder.hidden_states(CONFIG, params, tokens))


def logprob(params: decoder.Params, row: Row) -> float:
    """Of the whole response, by the full softmax at the position before each of its tokens."""
    logits = hidden(params, row) @ np.float64(params["head"])
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    start = len(row.prompt)
    return sum(logp[start - 1 + i, token] for i, token in enumerate(row.response))


def score(params: decoder.Params, row: Row) -> float:
    """What a reward model says at the row's last token."""
    return float(hidden(params, row)[-1] @ np.float64(params["score"]))


def moved(before: decoder.Params, after: decoder.Params) -> float:
    """One number for how all weights have moved: their changes, each times a number of its own."""
    rng = np.random.RandomState(7)
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return float(sum((rng.normal(size=a.shape) * (np.float64(b) - a)).sum() for a, b in pairs))
