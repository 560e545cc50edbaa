"""Evaluation and measures by labels that are there: the numbers by NumPy, nobody asked, and what is left out said."""

import json
import random
import socket
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.annotation.formats.rows_of import rated
from rlhf_jax.annotation.labels.labels_file import write_labels
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.length_control import length_controlled_win_rate
from rlhf_jax.jobs import annotate
from rlhf_jax.jobs.evaluate import leaderboard_job
from rlhf_jax.jobs.measure import measure_job
from rlhf_jax.settings import load_page

ROOT = Path(__file__).parents[2]
JOBS = {"evaluate": leaderboard_job, "measure": measure_job, "annotate": annotate}


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def run(page: str, folder: Path, **changes: object) -> dict:
    config = load_page(str(ROOT / "configs" / page))
    config.update(changes)
    JOBS[config.job].run(config, str(folder))
    made = folder / "summary.json"
    return json.loads(made.read_text()) if made.exists() else {}


def refused(page: str, folder: Path, **changes: object) -> str:
    with pytest.raises(UserError) as caught:
        run(page, folder, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pairs(seed: int, n: int = 60, values: tuple = (1, 1.25, 1.5, 2), model: str = "m") -> list[dict]:
    rng = random.Random(seed)
    return [
        {
            "instruction": f"i{i}",
            "output_1": "base " * (i % 7 + 1),
            "output_2": f"{model} " * rng.randint(1, 9),
            "generator_2": model,
            "preference": rng.choice(values),
        }
        for i in range(n)
    ]


def saved(path: Path, rows: list[dict]) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


def test_win_rates_of_label_files(tmp_path: Path) -> None:
    tables = {name: pairs(k, model=name) for k, name in enumerate(("one", "two"))}
    tables["one"][3]["preference"] = None
    tables["one"][4]["preference"] = 0  # A draw of old.
    judged = ",".join(f"{name}={saved(tmp_path / f'{name}.json', rows)}" for name, rows in tables.items())
    found = run("evaluate.py:labels", tmp_path / "w", judged=judged)
    for name, rows in tables.items():
        x = np.array(
            [{None: np.nan, 0: 1.5}.get(row["preference"], row["preference"]) for row in rows], float
        )
        s = x[~np.isnan(x)] - 1
        got = found["methods"][name]["judge"]
        assert got["win_rate"] == pytest.approx(100 * s.mean(), abs=1e-9)
        assert got["standard_error"] == pytest.approx(100 * s.std(ddof=1) / np.sqrt(len(s)), abs=1e-9)
        assert (got["n_total"], got["n_missing"]) == (len(s), len(x) - len(s))
        kept = [row | {"preference": v, "input": ""} for row, v in zip(rows, x, strict=True)]
        controlled = length_controlled_win_rate(kept).win_rate
        assert found["methods"][name]["length_controlled"]["win_rate"] == pytest.approx(controlled, abs=1e-9)
    assert found["differences"][0]["n_total"] == 59
    assert (tmp_path / "w" / "leaderboard.csv").exists() and not (tmp_path / "w" / "answers.sqlite").exists()


def test_both_orders_count_once_and_what_cannot_be_used_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pairs(0, values=(1, 2))
    twice = [row | {"preference": 3 - row["preference"]} for row in rows[:10]]
    broken = [
        rows[0] | {"preference": True},
        rows[0] | {"output_2": False},
        rows[0] | {"preference": "1"},
        rows[0] | {"instruction": None},
        rows[0] | {"input": ["a"]},
        rows[11] | {"generator_2": " \n"},
        rows[11] | {"generator_2": float("nan")},
    ]
    path = saved(tmp_path / "m.json", rows + twice + broken)
    found = run("evaluate.py:labels", tmp_path / "w", judged=f"m={path}")
    said = capsys.readouterr().out
    assert "1 with output_2 bool, no text" in said and "1 with instruction missing" in said
    assert "1 with input list, no text" in said
    assert (
        "1 with a preference that is str, no number" in said
        and "12 rows label a pair that another row" in said
    )
    assert "1 with a preference that is bool, no number" in said
    scores = [0.5] * 10 + [row["preference"] - 1 for row in rows[10:]]
    assert found["methods"]["m"]["judge"]["win_rate"] == pytest.approx(100 * np.mean(scores), abs=1e-9)


def test_the_labels_of_the_annotate_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row | {"kind": "pairwise", "status": "ok"} for row in pairs(0)]
    rows[0] |= {"status": "parse_error"}  # Whatever number stands beside it.
    write_labels(tmp_path / "labels.parquet", [*rows, rated("p", "", "x", 3.0)], {})
    found = run("evaluate.py:labels", tmp_path / "w", judged=f"m={tmp_path / 'labels.parquet'}")
    got = found["methods"]["m"]["judge"]
    assert (got["n_total"], got["n_missing"]) == (59, 1)
    assert "; 1 preferences beside a status that is no label's count as missing" in capsys.readouterr().out
    assert got["win_rate"] == pytest.approx(100 * np.mean([r["preference"] - 1 for r in rows[1:]]), abs=1e-5)


def test_what_label_files_are_refused_for(tmp_path: Path) -> None:
    good = saved(tmp_path / "good.json", pairs(0))
    page, w = "evaluate.py:labels", tmp_path / "w"
    other = saved(tmp_path / "other.json", [row | {"output_1": "else"} for row in pairs(1)])
    assert "b: output_1 is another than a's in 60 of 60 rows" in refused(
        page, w, judged=f"a={good},b={other}"
    )
    sides = saved(tmp_path / "sides.json", [row | {"preference": i % 2} for i, row in enumerate(pairs(0))])
    assert "only 0 and 1 occur" in refused(page, w, judged=f"a={sides}")
    wild = saved(tmp_path / "wild.json", [row | {"preference": 3} for row in pairs(0)])
    said = refused(page, w, judged=f"a={wild}")
    assert "row 1: preference" in said and "3 is outside [1, 2]" in said
    two = saved(tmp_path / "two.json", pairs(0)[:30] + pairs(1, model="n")[30:])
    assert "holds outputs of 2 models (m, n)" in refused(page, w, judged=f"a={two}")
    assert "baseline_name" in refused(page, w, judged=f"baseline={good}")
    few = saved(tmp_path / "few.json", [row | {"preference": None} for row in pairs(0)[:40]] + pairs(0)[40:])
    assert "judged: a: preference: only 20 of 60 rows" in refused(page, w, judged=f"a={few}")
    assert "utility" in refused("evaluate.py", w, judged=f"a={good}")


def kappa(one: list[float], two: list[float]) -> float:
    """Cohen's kappa by its definition, for two categories."""
    a, b = np.array(one), np.array(two)
    observed = (a == b).mean()
    chance = sum((a == v).mean() * (b == v).mean() for v in (1, 2))
    return (observed - chance) / (1 - chance)


def test_annotators_are_compared_without_gold(tmp_path: Path) -> None:
    base = pairs(0)
    labels = {name: [random.Random(f"{name}{i}").choice((1, 2)) for i in range(60)] for name in "abc"}
    paths = {
        name: saved(
            tmp_path / f"{name}.json", [r | {"preference": p} for r, p in zip(base, some, strict=True)]
        )
        for name, some in labels.items()
    }
    annotators = ",".join(f"{name}={path}" for name, path in paths.items())
    found = run("measure.py", tmp_path / "w", games="", annotators=annotators)["reliability"]
    assert found["agreement of a and b"]["value"] == pytest.approx(
        np.mean(np.array(labels["a"]) == np.array(labels["b"]))
    )
    assert found["Cohen's kappa, a and c"]["value"] == pytest.approx(kappa(labels["a"], labels["c"]))
    table = np.array([[sum(labels[n][i] == v for n in "abc") for v in (1, 2)] for i in range(60)])
    observed = ((table * (table - 1)).sum(1) / 6).mean()
    chance = ((table.sum(0) / 180) ** 2).sum()
    assert found["Fleiss' kappa among the annotators"]["value"] == pytest.approx(
        (observed - chance) / (1 - chance)
    )
    # Krippendorff's alpha of complete nominal data: Fleiss' kappa with chance drawn without replacement.
    n1, n2 = table.sum(0)
    expected = 2 * n1 * n2 / (180 * 179)
    alpha = found["Krippendorff's alpha among the annotators"]["value"]
    assert alpha == pytest.approx(1 - (1 - observed) / expected)


def test_one_annotator_needs_gold_and_gold_an_annotator(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.json", pairs(0))
    assert "gold: names no file" in refused("measure.py", tmp_path, games="", annotators=f"a={path}")
    assert "annotators: names no file" in refused("measure.py", tmp_path, games="", annotators="", gold=path)


def test_outputs_that_are_no_text_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in PandaLM's published test set."""
    rows = [
        {
            "instruction": f"q{i}",
            "output_1": "a",
            "output_2": False if i == 1 else "b",
            "preference": 1 + i % 2,
        }
        for i in range(6)
    ]
    path = saved(tmp_path / "gold.json", rows)
    found = run("measure.py:annotators", tmp_path / "w", annotators=f"pandalm={path}", gold=path)
    assert "1 with output_2 bool, no text" in capsys.readouterr().out
    assert found["reliability"]["Cohen's kappa, pandalm and gold"]["n_items"] == 5


def test_a_format_without_anything_to_write_is_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "r.csv"
    source.write_text("i,,r,5\nj,,s,6\n")
    common = {"samples": "", "feedback": str(source), "feedback_format": "sparse_ratings"}
    run("annotate.py", tmp_path / "w", formats=("trl", "rrhf", "ultrafeedback"), **common)
    said = capsys.readouterr().out
    assert "formats: trl: not written" in said and "formats: rrhf: not written" in said
    made = {path.name for path in (tmp_path / "w").iterdir()}
    assert {"labels.parquet", "feedback.ultrafeedback.jsonl"} <= made and "feedback.trl.jsonl" not in made
    assert "formats: ('trll',); use some of" in refused(
        "annotate.py", tmp_path / "v", formats=("trll",), **common
    )
    assert not (tmp_path / "v" / "labels.parquet").exists()


def turned(row: dict) -> dict:
    """The same pair the other way round, as another row."""
    names = {"generator_1": row.get("generator_2"), "generator_2": row.get("generator_1")}
    outputs = {"output_1": row["output_2"], "output_2": row["output_1"]}
    label = None if row["preference"] is None else 3 - row["preference"]
    return row | names | outputs | {"preference": label}


def unnamed(seed: int, n: int = 40, **changes: object) -> list[dict]:
    return [{name: x for name, x in row.items() if name != "generator_2"} | changes for row in pairs(seed, n)]


@pytest.mark.parametrize("named", [False, True])
def test_both_orders_as_two_rows_are_one_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], named: bool
) -> None:
    names = {"generator_1": "base", "generator_2": "m"} if named else {}
    rows = unnamed(0, preference=2, **names)
    both = [x for row in rows for x in (row, turned(row))]
    both[1]["preference"] = 1.5  # The judge has the model win, or draw, as it is shown.
    path = saved(tmp_path / "swap.json", both)
    got = run("evaluate.py:labels", tmp_path / "w", judged=f"m={path}")["methods"]["m"]["judge"]
    assert got["n_total"] == 40 and got["win_rate"] == pytest.approx(100 * 39.75 / 40)
    said = capsys.readouterr().out
    assert "40 rows hold the outputs of another row the other way round; their labels are turned" in said
    assert ("no generator_2 is named" in said) != named


def test_texts_that_one_model_says_in_both_places_are_two_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where names say that output_2 is the model's in both rows, they are two samples of one prompt."""
    one = {"instruction": "i", "output_1": "yes", "output_2": "no", "generator_2": "m", "preference": 2}
    rows = [one, one | {"output_1": "no", "output_2": "yes", "preference": 1}]
    path = saved(tmp_path / "m.json", rows)
    got = run("evaluate.py:labels", tmp_path / "w", judged=f"m={path}", length_control=False)
    assert (got["methods"]["m"]["judge"]["n_total"], got["methods"]["m"]["judge"]["win_rate"]) == (2, 50)
    assert "1 rows hold the outputs of another row the other way round, but name" in capsys.readouterr().out


def test_a_pair_that_failed_first_has_the_status_of_its_label(tmp_path: Path) -> None:
    rows = [row | {"status": "ok"} for row in pairs(0)]
    failed = [row | {"status": "api_error", "preference": None} for row in rows[:20]]
    path = saved(tmp_path / "m.json", failed + rows)
    found = run("evaluate.py:labels", tmp_path / "w", judged=f"m={path}")
    assert found["methods"]["m"]["judge"]["n_total"] == 60
    assert found["methods"]["m"]["status"] == {"ok": 60}
