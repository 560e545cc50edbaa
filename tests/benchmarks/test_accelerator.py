"""The accelerators' benchmark on a model that fits anywhere, and its floors against what is known otherwise."""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import accelerator

from rlhf_jax.methods import sft
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.placement import init_sharded
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.loop import state
from rlhf_jax.training.loop.program_costs import matrix_flops
from rlhf_jax.training.loop.step import make_train_step

SMALL = [
    "--batch",
    "2",
    "--length",
    "32",
    "--steps",
    "1",
    "--prompts",
    "2",
    "--prompt",
    "4",
    "--response",
    "4",
]


def test_both_sides_run(capfd):
    accelerator.main(["--size", "tiny", *SMALL])
    rows = [[x.strip() for x in line.split("|")[1:-1]] for line in capfd.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["side", "---", "ours", "transformers"]
    for row in rows[2:]:
        assert (
            row[1].endswith(" ms") and int(row[2].replace(",", "")) > 0 and int(row[5].replace(",", "")) > 0
        )
        assert row[3] == row[6] == "-"  # a CPU has no entry among the peaks


def test_model_flops_are_those_of_the_program():
    """But for what the program does besides: in one block attention's whole square, its scores and the head again."""
    shape = accelerator.Shape(640, 128, 2, 4, 2, 32, 256)
    config = ModelConfig(*shape, tie_embeddings=True)
    T, B = 65, 4
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    step = make_train_step(sft.sft_loss_fn(config, T - 1, 64), optax.sgd(1.0))
    ones_B = np.ones(B, np.int32)
    batch = {"tokens": np.ones((B, T), np.int32), "lengths": T * ones_B, "prompt_lengths": ones_B}
    traced = step.trace(state.create(init_sharded(config, mesh, 0), optax.sgd(1.0), 0), batch)
    besides = 8 * T * shape.layers * shape.heads * shape.head_dim + 2 * shape.width * shape.vocab
    assert shape.training_flops(B, T) + B * T * besides == pytest.approx(matrix_flops(traced.jaxpr), rel=0.01)


def test_the_floors_of_a_card():
    """A step that takes twice the time of its FLOPs, and decoding that takes four times that of its bytes."""
    shape = accelerator.SIZES["1b"]
    assert shape.matrices == pytest.approx(1.236e9, rel=1e-3)
    args = argparse.Namespace(batch=8, length=2048, prompts=32, prompt=128, response=256)
    weights, cache = 2 * shape.matrices, 2 * 2 * 32 * 256 * 16 * 8 * 64
    found = {
        "device": "NVIDIA H100 80GB HBM3",
        "train_s": 2 * shape.training_flops(8, 2048) / 989e12,
        "peak": 3 * 2**30,
        "decode_s": 4 * 256 * (weights + cache) / 3.35e12,
    }
    _, _, _, tokens, mfu, peak, _, share, device, _ = accelerator.line("ours", found, shape, args).split("|")
    assert (mfu, peak, share, device.strip()) == (" 50.0% ", " 3.0 GiB ", " 25.0% ", found["device"])
    assert int(tokens.replace(",", "")) == round(8 * 2048 / found["train_s"])
