"""Run by test_kill.py: the front door, with rollouts that take their time. WORKDIR/rollout exists while one runs."""

import sys
import time
from pathlib import Path

from absl import app

from rlhf_jax import main
from rlhf_jax.sampling.decode_generator import DecodeGenerator

MARK = Path(next(a for a in sys.argv if a.startswith("--workdir=")).partition("=")[2]) / "rollout"
generate = DecodeGenerator.generate


def slow_generate(self, *args):
    MARK.touch()
    sampled = generate(self, *args)  # not waited for: it runs on while this process sleeps
    time.sleep(0.03)
    MARK.unlink()
    return sampled


if __name__ == "__main__":
    DecodeGenerator.generate = slow_generate
    app.run(main.main, flags_parser=main.parse_flags)
