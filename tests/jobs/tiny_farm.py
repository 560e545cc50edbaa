"""A farm small enough for tests: two hundred rows, models of width 16 with random weights, seconds per job.

Models are written, not trained. In the language model the end-of-sequence token stands out in both directions,
so some responses end at once, some in the middle and some not at all.
"""

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from rlhf_jax.data.records.records import read_table, write_parquet
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.microfarm import world
from rlhf_jax.microfarm.utility import utility
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.huggingface import export_folder
from rlhf_jax.programs import is_method, names
from rlhf_jax.settings import load_page

ROOT = Path(__file__).parents[2]
WIDTH, LAYERS, VOCAB = 16, 2, 320
STARTED: list[
    subprocess.Popen
] = []  # the processes that tests started; those left over are killed at the end
# Those whose adapters, recipes and moves between machines are tried. What holds for every method is in method_suite.
TRAINERS = ("sft", "reward_model", "dpo", "ppo")
METHODS = tuple(name for name in names() if is_method(name))

# What makes each page small. Paths below runs/farm are moved below the farm that a job is run on.
_SHORT = {"data.max_length": 96, "logprob_chunk": 16}
_OFFLINE = {"batch_size": 8, "log_every": 1, "eval_every": 4, "save_every": 4, "data.eval_rows": 12}
_OFFLINE |= {"optimizer.warmup_steps": 1}  # Some runs have a single step.
_ONLINE = {
    "data.max_prompt_length": 56,
    "data.eval_rows": 6,
    "rollout.batch_size": 8,
    "rollout.max_new_tokens": 8,
    "minibatch_size": 4,
    "steps": 8,
    "eval_every": 4,
    "save_every": 4,
    "optimizer.warmup_steps": 1,
    "logprob_chunk": 16,
}
SMALL = {
    "sft": _SHORT
    | _OFFLINE
    | {"epochs": 0.32, "model.width": WIDTH, "model.layers": LAYERS, "model.heads": 2, "model.kv_heads": 1}
    | {"model.ff": 32, "model.tie_embeddings": False},
    "reward_model": _OFFLINE | {"data.max_length": 96, "epochs": 0.5, "center_rows": 12},
    "dpo": _SHORT | _OFFLINE | {"epochs": 0.5},
    "rrhf": _SHORT | _OFFLINE | {"batch_size": 4, "epochs": 0.5},
    "kto": _SHORT | _OFFLINE | {"epochs": 0.25},
    "ppo": _ONLINE,
    "generate": {"data.rows": 12, "data.max_prompt_length": 56, "batch_size": 8, "max_new_tokens": 8},
    "score": {"data.max_length": 112, "batch_size": 8},
    "measure_policies": {"data.rows": 12, "data.max_prompt_length": 80, "data.max_length": 112}
    | {"data.pair_rows": 20, "batch_size": 8, "max_new_tokens": 8},
    "best_of_n": {},
    "annotate": {},
    "bandit": {"n_seeds": 2, "arms": 12, "spread": 9.0, "teacher.peak": 9.0, "student.peak": 4.0}
    | {"teacher.samples": 50, "student.pairs": 60, "reward_model.steps": 40, "sft.steps": 60},
    "evaluate": {},
    "inspect_data": {"data.max_length": 60},
    "weight_diff": {},
    "make_data": {"scale": 0.01},
    "measure": {"n_bootstrap": 5},
}


def build(folder: Path) -> Path:
    """Writes the farm's data, SFT model, reward model, labels and sampled pairs; returns `folder`."""
    files = world.build(folder / "data", seed=0, scale=0.02, vocab_size=VOCAB)
    _models(folder)
    rng = random.Random(0)
    rows = read_table(files["preference"])[:100]
    drawn = [row | {f"output_{k}": world.sample_demonstration(row, rng) for k in (1, 2)} for row in rows]
    write_parquet(folder / "labels/labels.parquet", [_labelled(row) for row in drawn])
    pairs = [
        {name: row[name] for name in ("instruction", "input")}
        | {"outputs": [row["output_1"], row["output_2"]], "generator": "sft"}
        for row in drawn
    ]
    write_parquet(folder / "pairs/outputs.parquet", pairs[:12])
    write_parquet(folder / "val_pairs/outputs.parquet", pairs[12:24])
    write_parquet(folder / "candidates/scores/scores.parquet", [_scored(row, rng) for row in rows[:40]])
    return folder


def settings(job: str, farm: Path, variant: str = "", **changes) -> ConfigDict:
    """The page of a job, small, on this farm. Names of changes may be dotted: **{"data.rows": 3}."""
    page = load_page(str(ROOT / f"configs/{job}.py") + (f":{variant}" if variant else ""))
    config = ConfigDict(json.loads(page.to_json().replace("runs/farm/", f"{farm}/")))
    config.update_from_flattened_dict(_small(job, config) | changes)
    return config


def _small(job: str, page: ConfigDict) -> dict[str, Any]:
    """What makes a page small; a method that SMALL does not name gets what others of its kind do."""
    if job in SMALL:
        return SMALL[job]
    kind = _ONLINE if "rollout" in page else _SHORT | _OFFLINE | {"epochs": 0.5}
    return {name: value for name, value in kind.items() if name in flat(page)}


def pages_of(job: str) -> tuple[str, ...]:
    """The names of the pages that are this job's, that of its own name first; of studies that one alone."""
    text = f'c.job = "{job}"'
    others = [x.stem for x in sorted((ROOT / "configs").glob("*.py")) if text in x.read_text()]
    return (job, *(x for x in others if x != job and job != "study"))


def arguments(job: str, farm: Path, workdir: Path, **changes) -> list[str]:
    """The same as a command line for `python -m rlhf_jax.main`."""
    page = load_page(str(ROOT / f"configs/{job}.py"))
    small, moved = settings(job, farm, **changes), []
    for name, value in flat(small).items():
        if value != flat(page)[name]:
            moved.append(f"--config.{name}={value}")
    return [f"--config={ROOT}/configs/{job}.py", f"--workdir={workdir}", *moved]


def start(
    command: list[str], *, cwd: Path = ROOT, stdout: Any = subprocess.PIPE, **environment: str
) -> subprocess.Popen:
    """Starts `python COMMAND`, by default in the repository's root; output and errors are one text."""
    paths = os.pathsep.join((str(ROOT), str(Path(__file__).with_name("without_torch"))))
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": paths, **environment}
    process = subprocess.Popen(
        [sys.executable, *command], cwd=cwd, env=env, stdout=stdout, stderr=subprocess.STDOUT, text=True
    )
    STARTED.append(process)
    return process


def start_several(count: int, *command: Any, cwd: tuple = (), **changes: str) -> list[subprocess.Popen]:
    """Starts `python COMMAND` in processes that know each other."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    ours = {"RLHF_JAX_COORDINATOR": f"127.0.0.1:{port}", "RLHF_JAX_NUM_PROCESSES": str(count)}
    folders = cwd or (ROOT,) * count
    return [
        start([*map(str, command)], cwd=folders[i], **ours | changes, RLHF_JAX_PROCESS_ID=str(i))
        for i in range(count)
    ]


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """What a process printed; it must end with this status."""
    out, _ = process.communicate(timeout=800)
    assert process.returncode == status, out
    return out


def rows(workdir: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(x).items() if not k.startswith(("perf/", "timing_s/"))} for x in lines
    ]


def model_config() -> ModelConfig:
    return ModelConfig(vocab_size=VOCAB, width=WIDTH, layers=LAYERS, heads=2, kv_heads=1, head_dim=8, ff=32)


def random_params(*, scalar: bool, eos_id: int = 2, seed: int = 0) -> decoder.Params:
    """Host parameters. Larger than at birth, so that attention, gates and log-probs vary as in a trained model."""
    rng = np.random.default_rng(seed)
    shapes = nn.unbox(decoder.shapes(model_config(), scalar=scalar))

    def draw(path: tuple, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        name, noise = path[-1].key, rng.normal(size=shape.shape)
        return np.float32({"scale": 1 + 0.1 * noise, "embed": noise}.get(name, noise * WIDTH**-0.5))

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    if not scalar:
        params["head"][:, eos_id] *= 4
    return params


def _models(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "data/tokenizer")
    assert len(tokenizer) == VOCAB
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    for name, scalar in (("sft", False), ("reward_model", True)):
        params = random_params(scalar=scalar, eos_id=tokenizer.eos_token_id, seed=int(scalar))
        export_folder.save_folder(
            folder / name / "export",
            model_config(),
            params,
            token_ids=ids,
            tokenizer_from=folder / "data/tokenizer",
            reward_mean=0.25 if scalar else None,
        )


def _labelled(row: dict) -> dict:
    one, two = (utility(row["instruction"], row["input"], row[f"output_{k}"]) for k in (1, 2))
    preference = 1.5 if one == two else 1.0 if one > two else 2.0
    return {name: row[name] for name in ("instruction", "input", "output_1", "output_2")} | {
        "preference": preference
    }


def _scored(row: dict, rng: random.Random) -> dict:
    said = [world.sample_demonstration(row, rng) for _ in range(rng.choice((2, 3)))]
    scores = [utility(row["instruction"], row["input"], x) for x in said]
    return {name: row[name] for name in ("instruction", "input")} | {"responses": said, "scores": scores}


def flat(config: ConfigDict, prefix: str = "") -> dict:
    """Every field of a page by its dotted name."""
    found = {}
    for name, value in config.items():
        name = prefix + name
        found |= flat(value, f"{name}.") if isinstance(value, ConfigDict) else {name: value}
    return found
