"""What compiled programs of a mesh must hold, and what must never come back into them, read from their text."""

from pathlib import Path

import pytest
import tiny_farm

pytestmark = pytest.mark.timeout(600)


def test_decoding_gathers_no_weight_and_training_holds_no_logits_and_sends_the_head_once():
    script = str(Path(__file__).with_name("compiled_programs.py"))
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    out = tiny_farm.finish(tiny_farm.start([script], XLA_FLAGS=flags))
    for sizes in ("(1, 8, 1)", "(2, 2, 2)", "(8, 1, 1)"):
        assert f"{sizes} the head is sent once" in out
    assert "decoding gathers no weight" in out and "compaction moves no row" in out
    assert "training holds no logits of a batch" in out


def test_steps_for_gpus_have_cudnns_attention_on_every_mesh():
    script = str(Path(__file__).with_name("steps_for_gpus.py"))
    out = tiny_farm.finish(tiny_farm.start([script], XLA_FLAGS="--xla_force_host_platform_device_count=8"))
    for sizes in ("(1, 1, 1)", "(1, 8, 1)", "(2, 2, 2)", "(1, 1, 8)"):
        assert f"{sizes} attention is cuDNN's" in out
    assert "packed rows are XLA's" in out
