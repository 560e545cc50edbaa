"""Outputs of models from elsewhere: compared on a machine that has neither jax nor the microfarm."""

import json
import subprocess
import sys
from pathlib import Path

from rlhf_jax.microfarm.judges.judge_server import JudgeServer

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "flax", "optax", "orbax", "torch", "transformers", "datasets"):
            raise ImportError(f"{name} is not installed here")
        if name == "rlhf_jax.microfarm":
            raise ImportError(f"{name} is not needed here")
sys.meta_path.insert(0, Blocked())
sys.argv = ["rlhf_jax", *sys.argv[1:]]
from absl import app
from rlhf_jax import main
app.run(main.main, flags_parser=main.parse_flags)
"""


def test_real_outputs_need_no_jax_and_no_microfarm(tmp_path):
    texts = {
        "base": "It is a kind of fruit.",
        "one": "An apple is a sweet fruit that grows on trees.",
        "two": "",
    }
    files = {name: tmp_path / f"{name}.json" for name in texts}
    for name, text in texts.items():
        rows = [{"instruction": f"What is an apple? ({i})", "output": text} for i in range(8)]
        files[name].write_text(json.dumps(rows))
    with JudgeServer() as server:
        judge = (ROOT / "configs/judges/micro_clean.yaml").read_text()
        assert "base_url: local" in judge
        (tmp_path / "j.yaml").write_text(judge.replace("base_url: local", f"base_url: {server.url}/v1"))
        command = [sys.executable, "-c", PROGRAM, "--config=configs/evaluate.py:outputs"]
        command += [
            f"--workdir={tmp_path}/out",
            f"--config.baseline={files['base']}",
            f"--config.judges={tmp_path}/j.yaml",
        ]
        command += [f"--config.outputs=one={files['one']},two={files['two']}"]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["reference_method"] is None and summary["reward_model"] is None
    assert summary["methods"]["one"]["judge"]["win_rate"] > summary["methods"]["two"]["judge"]["win_rate"]
    html = (tmp_path / "out/report.html").read_text()
    assert "utility" not in html.split("</style>")[1] and 'id="samples"' in html
    # Equally long outputs everywhere: nothing tells length from the model, so no number is given.
    assert summary["methods"]["one"]["length_controlled"] is None
    assert "length control: one: controls: length: the difference is -24 in every row" in ran.stdout
