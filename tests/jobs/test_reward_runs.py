"""Runs of PPO that are scored by functions, judges and sums: what they learn from, pay and log; kills and refusals."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_farm

sys.path.insert(0, str(Path(__file__).parents[1] / "annotation"))
from annotation_fake_server import FakeServer, openai_payload

from rlhf_jax.data.records.records import read_table, write_parquet
from rlhf_jax.errors import UserError
from rlhf_jax.programs import program

MODULE = """
def nothing(prompts, responses):
    return [0.0 for _ in responses]
def length(prompts, responses):
    assert all(set(row) >= {"instruction", "input"} for row in prompts)
    return [len(text) for text in responses]
"""
SHORT = {"steps": 2, "eval_every": 1, "save_every": 1, "best_metric": ""}
YAML = """
name: rater
kind: rating
provider: openai
base_url: {url}/v1
api_key_env: ""
model: test-model
template: rating_scale
parser: {{name: rating, low: 1, high: 7}}
max_tokens: 10
sampling: {{temperature: 0}}
price: {{input: 1, output: 10}}
"""
CLEAN = str(tiny_farm.ROOT / "configs/judges/micro_clean.yaml")


# A whole run and three parts of another, and some machines are busy.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "tiny_rewards.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("tiny_rewards", None)


def run(farm, folder, **changes):
    program("ppo").run(tiny_farm.settings("ppo", farm, **SHORT | changes), str(folder))
    return tiny_farm.rows(folder)


def test_a_sum_with_nothing_is_the_reward_model_alone(farm, tmp_path, functions):
    alone = run(farm, tmp_path / "alone")
    several = run(
        farm, tmp_path / "sum", **{"reward.sources": "reward_model,function=tiny_rewards:nothing*3"}
    )
    assert all(not any(name.removeprefix("eval/").startswith("rewards/") for name in row) for row in alone)
    for one, two in zip(alone, several, strict=True):
        assert {name: two[name] for name in one} == one
        if "objective/kl" in one:
            assert two["rewards/function"] == 0 and two["rewards/reward_model"] == one["objective/raw_scores"]


def test_a_run_without_a_reward_model_needs_none(farm, tmp_path, functions, capsys):
    changes = {"reward.sources": "function=tiny_rewards:length*0.5", "model.reward": str(tmp_path / "none")}
    rows = run(farm, tmp_path / "run", **changes)
    assert "value model: starts from the trunk of the policy" in capsys.readouterr().out
    trained = [row for row in rows if "objective/kl" in row]
    assert all(row["objective/raw_scores"] == pytest.approx(0.5 * row["rewards/function"]) for row in trained)
    samples = [json.loads(x) for x in (tmp_path / "run/samples/000002.jsonl").read_text().splitlines()]
    for row in samples:
        assert row["score"] == (0.5 * len(row["output"]) if row["ended"] else -3.0)
    # Another version of the module is another reward.
    (tmp_path / "tiny_rewards.py").write_text(MODULE + "\n\n")
    sys.modules.pop("tiny_rewards")
    with pytest.raises(UserError, match=r"tiny_rewards.py"):
        run(farm, tmp_path / "run", **changes, steps=2)


class Rater:
    """Rates by the length of the response, 1 to 7, and cannot say of some. At the question number `kill` it ends the
    process that asks."""

    def __init__(self):
        self.kill, self.process, self.asked = 0, None, 0

    def __call__(self, body, nth):
        self.asked += 1
        if self.asked == self.kill:
            self.process.kill()
        said = body["messages"][-1]["content"].split("<output>\n")[1].split("\n</output>")[0]
        return openai_payload("no idea" if len(said) % 5 == 4 else str(1 + len(said) % 7))


def test_a_judge_is_paid_once_whatever_happens_to_the_run(farm, tmp_path, front_door, capsys):
    rater, judge = Rater(), tmp_path / "judge.yaml"
    changes = {
        "steps": 3,
        "eval_every": 2,
        "save_every": 1,
        "reward.sources": f"judge={judge},reward_model*0.25",
        "reward.max_concurrency": 1,
        "win_rate.judges": CLEAN,
        "win_rate.max_instructions": 4,
        "best_metric": "eval/win_rate",
    }
    with FakeServer(rater) as server:
        judge.write_text(YAML.format(url=server.url))
        whole = run(farm, tmp_path / "whole", **changes)
        said = capsys.readouterr().out
        assert "reward.sources: judge rater: for 24 responses and the evaluations" in said
        assert said.index("at most $") < said.index("steps/s") if "steps/s" in said else "at most $" in said
        paid = rater.asked

        # kill -9 in the middle of asking, in the second iteration or so.
        rater.asked, rater.kill = 0, paid // 2
        folder = tmp_path / "killed"
        arguments = tiny_farm.arguments("ppo", farm, folder, **SHORT | changes)
        rater.process = tiny_farm.start(["-m", "rlhf_jax.main", *arguments])
        out, _ = rater.process.communicate(timeout=300)
        assert rater.process.returncode == -9, out
        # Without the money for another answer it stops in one line,
        status, _, errors = front_door(*arguments, "--config.reward.max_usd=1e-6")
        assert status == 2 and len(errors) == 1 and errors[0].startswith("error: reward.max_usd: "), errors
        assert "raise max_usd and run again" in errors[0]
        # and goes on with more. Only the answer on its way when the process died was asked for twice.
        status, _, errors = front_door(*arguments, "--config.reward.max_usd=9")
        assert status == 0, errors
        assert paid <= rater.asked <= paid + 1
    assert tiny_farm.rows(folder) == whole
    for name in ("export/model.safetensors", "samples/000003.jsonl"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    # Every number of the judge's is in the rows: 110 tokens of an answer cost 0.0002 dollars.
    trained = [row for row in whole if "objective/kl" in row]
    assert all(row["rewards/judge/usd"] <= 0.0002 for row in trained)
    assert any(row["completions/unscored"] > 0 for row in whole if "completions/unscored" in row)
    evaluated = [row for row in whole if "eval/win_rate" in row]
    assert [row["step"] for row in evaluated] == [0, 2, 3]
    assert evaluated[0]["eval/win_rate"] == 0.5  # against itself
    assert all(0 <= row["eval/win_rate"] <= 1 and row["eval/judge_usd"] == 0 for row in evaluated)


def test_the_win_rate_is_that_of_the_samples_against_a_file(farm, tmp_path):
    held = read_table(farm / "data/val.parquet")
    baseline = [{n: row[n] for n in ("instruction", "input")} | {"output": "Yes."} for row in held]
    write_parquet(tmp_path / "baseline.parquet", baseline)
    changes = {"win_rate.judges": CLEAN, "win_rate.baseline": str(tmp_path / "baseline.parquet"), "steps": 1}
    rows = run(farm, tmp_path / "run", **changes)
    from rlhf_jax.annotation import annotate_pairs, load_pool
    from rlhf_jax.feedback.judging import judge_urls

    pool = load_pool(CLEAN)
    with judge_urls(pool) as urls:
        for row in (row for row in rows if "eval/win_rate" in row):
            path = tmp_path / f"run/samples/{row['step']:06d}.jsonl"
            samples = [json.loads(line) for line in path.read_text().splitlines()]
            pairs = [
                {
                    "instruction": x["instruction"],
                    "input": x["input"],
                    "output_1": "Yes.",
                    "output_2": x["output"],
                }
                for x in samples
            ]
            labels, _ = annotate_pairs(pairs, pool, base_urls=urls)
            assert row["eval/win_rate"] == pytest.approx(np.mean([x["preference"] - 1 for x in labels]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reward.sources": "reward_modle"}, "reward.sources: 'reward_modle': the kind"),
        ({"reward.sources": "reward_model=nowhere"}, "reward.sources: nowhere: no such folder"),
        ({"reward.sources": "function=nowhere:f"}, "reward.sources: nowhere:f: no module nowhere"),
        ({"reward.sources": "judge=nowhere.yaml"}, "reward.sources: "),
        ({"win_rate.judges": "nowhere.yaml"}, "win_rate.judges: "),
        ({"best_metric": "eval/win_rate"}, "best_metric: eval/win_rate, but win_rate.judges names no judge"),
        (
            {"reward.sources": f"judge={CLEAN}", "model.value_from": "reward"},
            "model.value_from: reward, but reward.sources names no reward model",
        ),
        ({"reward.sources": f"judge={CLEAN}"}, "compares responses to a prompt, and there is one of each"),
        (
            {"win_rate.judges": str(tiny_farm.ROOT / "configs/judges/micro_rating.yaml")},
            "win_rate.judges: micro_rating is of kind rating; give a judge of kind pairwise",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(farm, tmp_path, refused, changes, said):
    changes = SHORT | changes
    if "model.value_from" in changes:
        baseline = [row | {"output": "Yes."} for row in read_table(farm / "data/val.parquet")]
        baseline += [row | {"output": "Yes."} for row in read_table(farm / "data/unlabeled.parquet")]
        write_parquet(tmp_path / "baseline.parquet", baseline)
        changes["reward.baseline"] = str(tmp_path / "baseline.parquet")
    line = refused(*tiny_farm.arguments("ppo", farm, tmp_path / "run", **changes))
    assert said in line, line
