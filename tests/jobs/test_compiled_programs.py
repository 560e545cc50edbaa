"""What must never come back into the compiled programs of a mesh, read from their text. On eight devices."""

from pathlib import Path

import pytest
import tiny_farm

pytestmark = pytest.mark.timeout(600)


def test_decoding_gathers_no_weight_and_training_holds_no_logits_of_a_batch():
    script = str(Path(__file__).with_name("compiled_programs.py"))
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    out = tiny_farm.finish(tiny_farm.start([script], XLA_FLAGS=flags))
    assert "decoding gathers no weight" in out and "training holds no logits of a batch" in out
