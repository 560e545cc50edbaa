"""Writes recorded_outputs.npz: what transformers computes for the tiny models, for suites that run without torch.

PYTHONPATH=.:tests/models python tests/models/record_outputs.py
"""

import tempfile
from pathlib import Path

import numpy as np
import theirs
from tiny_families import CONFIGS, left_padded, right_padded, write_folder

FILE = Path(__file__).with_name("recorded_outputs.npz")
R = 8  # greedy tokens


def record() -> dict[str, np.ndarray]:
    """Per config: logits of each row's last token, greedy tokens, scores."""
    found = {}
    for name in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            model = theirs.load(write_folder(Path(folder) / "causal", name))
            tokens_BP, lengths_B = left_padded()
            found[f"{name}/logits"] = theirs.logits(model, tokens_BP, lengths_B)[:, -1]
            found[f"{name}/tokens"] = theirs.greedy(model, tokens_BP, lengths_B, R)[0].astype(np.int32)
            model = theirs.load(write_folder(Path(folder) / "scalar", name, scalar=True), scalar=True)
            found[f"{name}/scores"] = theirs.scores(model, *right_padded())
    return found


if __name__ == "__main__":
    np.savez_compressed(FILE, **record())
