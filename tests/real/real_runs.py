"""Runs of methods and jobs on the real model: the settings that all share, and what must hold of each run."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.programs import program
from rlhf_jax.settings import load_page

CONFIGS = Path(__file__).parents[2] / "configs"
MARKS = [
    pytest.mark.timeout(1800),  # Two stages before it compile thirty layers, too, and the cores are shared.
    pytest.mark.skipif(
        not os.environ.get("RLHF_JAX_WIDE"), reason="takes minutes of two cores; RLHF_JAX_WIDE=1 runs it, too"
    ),
]
NEW = 10  # Tokens that are sampled.
STEPS = 4
TRAINED = {"data.template": "chat", "log_every": 1, "eval_every": STEPS, "save_every": STEPS}
TRAINED |= {"optimizer.schedule": "constant", "optimizer.warmup_steps": 0, "optimizer.learning_rate": 1e-3}
ADAPTER = TRAINED | {"lora.rank": 8, "lora.alpha": 32.0}
OFFLINE = ADAPTER | {"data.max_length": 64, "data.eval_rows": 4, "batch_size": 4, "epochs": STEPS * 4 / 8}


def page_of(page, changes):
    """The settings of a page, NAME or NAME:VARIANT, with these changes."""
    name, colon, variant = page.partition(":")
    config = load_page(f"{CONFIGS}/{name}.py{colon}{variant}")
    config.update_from_flattened_dict({k: str(v) if isinstance(v, Path) else v for k, v in changes.items()})
    return config


def run(page, workdir, changes):
    """One job in this process; the rows of its metrics.jsonl, if any."""
    config = page_of(page, changes)
    program(config.job).run(config, str(workdir))
    return metrics_of(workdir)


def metrics_of(workdir):
    """The rows of a run's metrics.jsonl, if any."""
    found = workdir / "metrics.jsonl"
    return [json.loads(line) for line in found.read_text().splitlines()] if found.is_file() else []


def train(page, workdir, changes, member=""):
    """A run whose metrics are all finite, and which wrote its adapter and the model that it is merged into."""
    rows = run(page, workdir, changes)
    for row in rows:
        for name, value in row.items():
            assert value is not None and np.isfinite(value), (name, row)
    for part in ("adapter", "export"):
        names = {file.name for file in (workdir / part / member).iterdir()}
        wanted = ("adapter_model" if part == "adapter" else "model") + ".safetensors"
        assert wanted in names, (part, names)
    return rows


def series(rows, name):
    """The values of one metric, all finite."""
    found = np.array([row[name] for row in rows if name in row])
    assert len(found) and np.isfinite(found).all(), (name, found)
    return found
