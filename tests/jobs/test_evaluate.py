"""The evaluate job on a fabricated farm: its numbers recomputed, its files, and what it says of bad input."""

import contextlib
import csv
import io
import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import rlhf_jax as rj
from rlhf_jax.annotation import annotate_samples, write_labels
from rlhf_jax.data.records.records import read_table, write_parquet
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.leaderboards.alpaca_eval_files import read_weights
from rlhf_jax.evaluation.measures.length_control import any_vs_any
from rlhf_jax.jobs.evaluate import leaderboard_job
from rlhf_jax.microfarm import human, world
from rlhf_jax.microfarm.judges.judge_server import JudgeServer
from rlhf_jax.microfarm.utility import utility
from rlhf_jax.settings import load_page

ROOT = Path(__file__).parents[2]
METHODS = {"sft": 0.1, "dpo": 0.5, "ppo": 0.9}  # share of excellent responses
N, MARGIN = 120, 0.15


def settings(folder: Path, **changes):
    """The page of the evaluate job with its paths below `folder`."""
    config = load_page(str(ROOT / "configs/evaluate.py"))
    moved = {k: v.replace("runs/farm", str(folder)) for k, v in config.items() if isinstance(v, str)}
    moved["judges"] = str(ROOT / moved["judges"])
    config.update({**moved, "max_instructions": N, **changes})
    return config


def run(config, workdir) -> str:
    """What the job prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        leaderboard_job.run(config, str(workdir))
    return printed.getvalue()


def refused(config, workdir) -> str:
    """The one line a user reads."""
    with pytest.raises(UserError) as caught, contextlib.redirect_stdout(io.StringIO()):
        leaderboard_job.run(config, str(workdir))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def farm(tmp_path_factory):
    """A farm's folder as the other jobs leave it, without a model: demonstrations stand in for samples."""
    folder, rng = tmp_path_factory.mktemp("farm"), random.Random(0)
    files = world.build(folder / "data", seed=0, scale=0.02, vocab_size=512)
    for method, share in METHODS.items():
        rows = [
            {name: row[name] for name in ("instruction", "input")}
            | {"output": world.sample_demonstration(row, rng, excellent=rng.random() < share)}
            for row in read_table(files["eval"])
        ]
        write_parquet(folder / "outputs" / method / "outputs.parquet", [r | {"generator": "x"} for r in rows])
    write_labels(folder / "labels/labels.parquet", _labels(read_table(files["preference"]), rng), {})
    write_parquet(folder / "scores/scores.parquet", _scores(read_table(files["val"]), rng))
    for name in ("sft", "ppo"):
        (folder / name).mkdir()
        rows = [{"step": i, "loss": 1 / i, "timing_s/step": 0.5} for i in (2, 4, 6)]
        rows = [row | {"objective/kl": row["step"], "objective/scores": row["step"] ** 0.5} for row in rows]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name / "metrics.jsonl").write_text(lines + '{"step": 8, "lo')  # cut off by a kill
    return folder


def _labels(rows, rng):
    pairs = [row | {"output": [world.sample_demonstration(row, rng) for _ in range(2)]} for row in rows]
    with JudgeServer() as server:
        pool = ROOT / "configs/judges/micro_pool.yaml"
        labelled = annotate_samples(pairs, pool, p_label_flip=0.25, base_urls={"local": server.url}).rows
    labelled[3] |= {"status": "parse_error", "preference": None}
    return labelled


def _scores(rows, rng):
    """A reward model that sees the utility through noise, and rows it has no pair for."""
    made = []
    for row in rows:
        two = [world.sample_demonstration(row, rng) for _ in range(2)]
        scores = [4 * utility(row["instruction"], row["input"], text) + rng.gauss(0, 0.5) for text in two]
        made.append({**row, "responses": two, "scores": scores})
    made[0]["scores"][1] = None
    made[1]["responses"] = [made[1]["responses"][0]] * 2
    return made


@pytest.fixture(scope="module")
def done(farm):
    """(what was printed, the workdir, summary.json) of one run."""
    printed = run(settings(farm), farm / "evaluate")
    return printed, farm / "evaluate", json.loads((farm / "evaluate/summary.json").read_text())


def outputs_of(farm, method):
    return {
        (r["instruction"], r["input"]): r["output"]
        for r in read_table(farm / f"outputs/{method}/outputs.parquet")
    }


def test_judge_win_rates_are_those_of_the_annotations(done):
    _, folder, summary = done
    rows = read_table(folder / "annotations.parquet")
    assert len(rows) == 3 * N and {row["generator_1"] for row in rows} == {"reference"}
    assert not {"noise", "api_error"} & {row["status"] for row in rows}
    for method in METHODS:
        scores = np.array([r["preference"] - 1 for r in rows if r["generator_2"] == method])
        found = summary["methods"][method]["judge"]
        assert found["n_total"] == len(scores) == N
        assert found["win_rate"] == pytest.approx(100 * scores.mean())
        assert found["standard_error"] == pytest.approx(100 * scores.std(ddof=1) / N**0.5)
    assert summary["methods"]["reference"]["judge"] is None
    assert summary["methods"]["ppo"]["judge"]["win_rate"] > summary["methods"]["sft"]["judge"]["win_rate"] + 5


def test_length_control_and_paired_differences_are_those_of_the_annotations(done):
    printed, folder, summary = done
    rows = read_table(folder / "annotations.parquet")
    labels = {m: np.array([r["preference"] for r in rows if r["generator_2"] == m]) for m in METHODS}
    for method in METHODS:
        mine = [r for r in rows if r["generator_2"] == method]
        delta = np.array([len(r["output_1"]) - len(r["output_2"]) for r in mine], float)
        X = np.stack([np.tanh(delta / delta.std(ddof=1)), np.ones(N)], axis=1)
        w, y = np.zeros(2), labels[method] - 1
        for _ in range(50):
            p = 1 / (1 + np.exp(-X @ w))
            hessian = (X.T * p * (1 - p)) @ X + 1e-4 * np.eye(2)
            w -= np.linalg.solve(hessian, X.T @ (p - y) + 1e-4 * w)
        found = summary["methods"][method]["length_controlled"]
        assert found["win_rate"] == pytest.approx(100 / (1 + np.exp(-w[1])), abs=1e-6)
        assert found["n_total"] == N and summary["methods"][method]["coverage"] == 1
        against = summary["length_controlled_against"]
        assert against[method]["reference"] == pytest.approx(found["win_rate"])
        assert against["reference"][method] == pytest.approx(100 - found["win_rate"])
    pairs = {(d["a"], d["b"]): d for d in summary["differences"]}
    assert set(pairs) == {("ppo", "dpo"), ("ppo", "sft"), ("dpo", "sft")}  # the better one first
    for (a, b), d in pairs.items():
        assert d["difference"] == pytest.approx(100 * (labels[a] - labels[b]).mean()) and d["n_total"] == N
        assert f"{a} - {b}" in printed
    assert pairs["ppo", "sft"]["interval"][0] > 0
    weights = read_weights(folder / "length_weights.csv")
    assert any_vs_any(weights, "ppo", "sft") == pytest.approx(against["ppo"]["sft"])
    ids = {found["judged_by"]["id"] for found in summary["methods"].values()}
    assert len(ids) == 1 and ids.pop() in (folder / "leaderboard.md").read_text()


def test_utilities_are_true_and_compared_on_the_same_instructions(done, farm):
    summary = done[2]
    prompts = [(r["instruction"], r["input"]) for r in read_table(farm / "data/eval.parquet")][:N]
    known = {m: [utility(*p, outputs_of(farm, m)[p]) for p in prompts] for m in METHODS}
    for method in METHODS:
        pairs = list(zip(known[method], known["sft"], strict=True))
        wins = sum(a > b + 1e-9 for a, b in pairs) + sum(abs(a - b) <= 1e-9 for a, b in pairs) / 2
        found = summary["methods"][method]["utility"]
        assert found["win_rate"] == pytest.approx(100 * wins / N) and found["n_total"] == N
        assert found["mean_utility"] == pytest.approx(np.mean(known[method]))
        assert found["interval"][0] <= found["win_rate"] <= found["interval"][1]
    assert summary["methods"]["ppo"]["utility"]["interval"][0] > 60
    assert summary["methods"]["reference"]["utility"]["n_total"] == N


def test_what_was_found_of_every_instruction_is_kept(done, farm):
    _, folder, summary = done
    rows = read_table(folder / "per_instruction.parquet")
    assert len(rows) == (len(METHODS) + 1) * N
    for method in (*METHODS, "reference"):
        mine = [row for row in rows if row["method"] == method]
        found, judged = summary["methods"][method], [row["win"] for row in mine]
        if method == "reference":
            assert judged == [None] * N
        else:
            assert np.mean(judged) * 100 == pytest.approx(found["judge"]["win_rate"])
            texts = outputs_of(farm, method)
            assert [len(texts[row["instruction"], row["input"]]) for row in mine] == [
                row["characters"] for row in mine
            ]
        assert np.mean([row["true_win"] for row in mine]) * 100 == pytest.approx(found["utility"]["win_rate"])
        assert np.mean([row["utility"] for row in mine]) == pytest.approx(found["utility"]["mean_utility"])


def test_agreement_with_the_human_is_that_of_the_labels(done, farm):
    found = done[2]["judge_human_agreement"]
    rows = read_table(farm / "labels/labels.parquet")
    usable = [r for r in rows if r["status"] in ("ok", "noise")]
    judged = [r for r in usable if r["status"] == "ok"]
    assert 0 < len(judged) < len(usable) < len(rows)

    def rate(rows, label):
        hits = [1 - abs(label(r) - prefers(r, "h0")) for r in rows]
        return pytest.approx(100 * np.mean(hits))

    def prefers(r, who):
        return human.prefer(r["instruction"], r["input"], r["output_1"], r["output_2"], seed=0, human=who)

    def clear(r):
        ends = [utility(r["instruction"], r["input"], r[f"output_{k}"]) for k in (1, 2)]
        return abs(ends[0] - ends[1]) >= MARGIN

    pool, noisy = found["micro_pool"], found["micro_pool with label noise"]
    assert pool["n_total"] == len(judged) and noisy["n_total"] == len(usable)
    assert pool["agreement"] == rate(judged, lambda r: r["preference"])
    assert noisy["agreement"] == rate(usable, lambda r: r["preference"])
    assert pool["clear_agreement"] == rate(list(filter(clear, judged)), lambda r: r["preference"])
    assert found["another human"]["agreement"] == rate(usable, lambda r: prefers(r, "h1"))
    longer = {1: 2.0, 0: 1.5, -1: 1.0}
    sign = [np.sign(len(r["output_2"]) - len(r["output_1"])) for r in usable]
    assert found["longer output wins"]["agreement"] == rate(usable, lambda r: longer[sign[usable.index(r)]])
    first = [r["preference"] - 1 if r["order"] == "21" else 2 - r["preference"] for r in judged]
    assert pool["biases"]["prefers_first"] == pytest.approx(100 * np.mean(first))
    assert pool["biases"]["n_first"] == len(judged) and noisy["biases"]["n_first"] == 0


def test_reward_model_is_held_against_the_truth_on_clear_pairs(done, farm):
    printed, _, summary = done
    rows = read_table(farm / "scores/scores.parquet")[2:]
    rows = [r for r in rows if r["responses"][0] != r["responses"][1]]
    right, longer = [], []
    for r in rows:
        u, s = [utility(r["instruction"], r["input"], text) for text in r["responses"]], r["scores"]
        if abs(u[0] - u[1]) >= MARGIN:
            right.append((s[0] > s[1]) == (u[0] > u[1]))
            length = [len(text) for text in r["responses"]]
            longer.append(0.5 if length[0] == length[1] else float((length[0] > length[1]) == (u[0] > u[1])))
    found = summary["reward_model"]
    assert found["clear"]["n"] == len(right) > 5
    assert found["clear"]["rate"] == pytest.approx(100 * np.mean(right)) and found["clear"]["rate"] > 70
    assert found["clear_longer"]["rate"] == pytest.approx(100 * np.mean(longer))
    assert found["human"]["n_total"] == len(rows) and found["left_out"]["no score"] == 1
    assert found["left_out"]["identical responses"] >= 1
    assert f"of {len(right)} (longer output wins {100 * np.mean(longer):.1f} %)" in printed


def test_files_agree_and_the_report_shows_all_parts(done, farm):
    printed, folder, summary = done
    text = (folder / "leaderboard.txt").read_text()
    assert text in printed and printed.endswith(f"report: {(folder / 'report.html').resolve()}\n")
    assert all(
        part in text for part in ("utility win rate", "agreement with the human", "order of clear pairs")
    )
    with open(folder / "leaderboard.csv") as file:
        board = {row["method"]: row for row in csv.DictReader(file)}
    for method, found in summary["methods"].items():
        assert float(board[method]["utility_win_rate"]) == found["utility"]["win_rate"]
    assert next(iter(board)) == "ppo" and "| 1 | ppo |" in (folder / "leaderboard.md").read_text()
    html = (folder / "report.html").read_text()
    for section in (
        "leaderboard",
        "findings",
        "methods",
        "curves",
        "frontier",
        "judges",
        "reward-model",
        "samples",
        "timings",
    ):
        assert f'<section id="{section}">' in html
    assert html.count('<article class="sample">') == 12
    assert json.loads((folder / "config.json").read_text())["judges"].endswith("micro_pool.yaml")
    assert pq.read_schema(folder / "annotations.parquet").metadata[b"rlhf_jax.labels.version"] == b"1"


def test_what_was_looked_for_is_written_and_what_was_found_is_said(done):
    printed, folder, _ = done
    found = json.loads((folder / "findings.json").read_text())
    assert {"judges", "labels", "reward model", "leaderboard", "sft", "ppo"} == found["looked_for"].keys()
    assert found["looked_for"]["labels"] == ["labels contradict each other"]
    assert [one.as_dict() for one in rj.open_run(folder).findings()] == found["findings"]
    for one in found["findings"]:
        assert one["subject"] in found["looked_for"] and f"{one['subject']}: {one['name']}: " in printed
    # This reward model sees the utility, and these runs are three steps long.
    assert not {"reward model", "sft", "ppo"} & {one["subject"] for one in found["findings"]}


def test_runs_without_metrics_are_noted_and_the_others_drawn(done, farm):
    printed, _, summary = done
    assert f"no {farm}/dpo/metrics.jsonl" in printed and "1 broken lines left out" in printed
    assert summary["stages"]["ppo"]["seconds"] == pytest.approx(3.0)
    assert (farm / "ppo/plots/loss.png").stat().st_size > 1000 and not (farm / "dpo").exists()


def test_a_second_run_asks_nobody_and_finds_the_same(done, farm):
    _, folder, before = done
    run(settings(farm), folder)
    after = json.loads((folder / "summary.json").read_text())
    assert before["judging"]["asked"] > 300 and after["judging"]["asked"] == 0
    for part in ("methods", "judge_human_agreement", "reward_model", "instructions"):
        same = json.loads(json.dumps(before[part]))
        for method in same.values() if part == "methods" else []:
            assert method["status"] == after[part].pop("status", method["status"])
        assert same == after[part]


def test_wrong_inputs_are_one_line_that_says_what_would_work(farm, tmp_path):
    gone = f"{farm}/outputs/rrhf/outputs.parquet"
    for changes, told in (
        (
            {"outputs": f"rrhf={gone}", "reference_method": "rrhf"},
            f"--workdir={farm}/outputs/rrhf --config.model.path={farm}/rrhf/export",
        ),
        ({"outputs": f"sft={farm}/data/val.parquet"}, "none of the 40 instructions"),
        ({"outputs": "sft"}, "'sft' is not NAME=PATH"),
        ({"outputs": "a=b,a=c"}, "'a' is named twice"),
        ({"outputs": ""}, "outputs: names no file"),
        ({"outputs": f"sft={farm}/labels/labels.parquet"}, "without output); found "),
        ({"reference_method": "pop"}, "did you mean ppo?"),
        ({"max_instructions": -1}, "max_instructions: -1"),
        ({"baseline": f"{farm}/gone/eval.parquet"}, "--config=configs/make_data.py"),
        ({"labels": f"{farm}/gone.parquet"}, "--config=configs/annotate.py"),
        ({"labels": f"{farm}/data/val.parquet"}, "labels of version none"),
        ({"scored": f"{farm}/gone.parquet"}, "--config=configs/score.py"),
        ({"scored": f"{farm}/data/val.parquet"}, "no column 'responses'"),
        ({"runs": "sft"}, "runs: 'sft' is not NAME=PATH"),
        ({"judges": f"{farm}/gone.yaml"}, "gone.yaml"),
        ({"difficulty": f"{farm}/data/val.parquet"}, "no column 'difficulty'"),
        ({"regulariser": f"{farm}/data/val.parquet"}, "no column 'output_1'"),
        ({"published": f"{farm}/gone.csv"}, "gone.csv: no such file"),
    ):
        assert told in refused(settings(farm, **changes), tmp_path / "wrong"), changes
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(settings(farm), tmp_path / "file" / "below")


def _judge_file(path, **changes):
    text = (ROOT / "configs/judges/micro_clean.yaml").read_text()
    for was, now in changes.values():
        assert was in text
        text = text.replace(was, now)
    path.write_text(text)
    return str(path)


def test_a_judge_that_talks_nonsense_gets_no_win_rate(farm, tmp_path):
    judge = _judge_file(tmp_path / "j.yaml", model=("micro-judge-clean", "micro-judge-clean:nonsense"))
    told = refused(settings(farm, judges=judge, max_instructions=30), tmp_path / "out")
    assert told.startswith("sft: preference: only ") and "parse_error" in told
    rows = read_table(tmp_path / "out/annotations.parquet")
    assert len(rows) == 30  # the other methods were not paid for
    assert not (tmp_path / "out/report.html").exists()


def test_a_dead_judge_is_named(farm, tmp_path):
    judge = _judge_file(tmp_path / "j.yaml", url=("base_url: local", "base_url: http://127.0.0.1:9/v1"))
    assert "http://127.0.0.1:9/v1: cannot be reached" in refused(
        settings(farm, judges=judge), tmp_path / "out"
    )


def test_more_files_sharpen_the_length_control_and_others_are_ranked_beside(farm, tmp_path):
    prompts = read_table(farm / "data/eval.parquet")[:40]
    write_parquet(
        tmp_path / "difficulty.parquet",
        [
            {"instruction": r["instruction"], "input": r["input"], "difficulty": i % 3 - 1.0}
            for i, r in enumerate(prompts)
        ],
    )
    gamed = [
        {
            **r,
            "output_1": r["output"],
            "output_2": r["output"][: 5 * k],
            "preference": 1.0,
            "generator_2": f"g{k}",
        }
        for k in (1, 2)
        for r in prompts
    ]
    write_parquet(tmp_path / "gamed.parquet", gamed)
    (tmp_path / "board.csv").write_text(
        "method,judge,baseline,win_rate,n_total\nother,gpt,davinci,70.4,805\n"
    )
    files = {"difficulty": "difficulty.parquet", "regulariser": "gamed.parquet", "published": "board.csv"}
    changes = {name: str(tmp_path / file) for name, file in files.items()}
    changes |= {"max_instructions": 40, "utility": False, "cache": str(farm / "evaluate/answers.sqlite")}
    run(settings(farm, **changes), tmp_path / "out")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    found = summary["methods"]["ppo"]["length_controlled"]
    assert found["n_regulariser"] == 80 and set(found["weights"]) == {"length", "difficulty", "model"}
    assert summary["methods"]["other"]["judge"]["win_rate"] == 70.4
    assert "other" in (tmp_path / "out/leaderboard.txt").read_text()
