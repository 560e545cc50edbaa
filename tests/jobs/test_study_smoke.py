"""A study of the papers from its first stage to its report, a few steps each, and killed at five random moments of it.

Takes as long as compiling nine trainers, twice. RLHF_JAX_WIDE=1 runs it; RLHF_JAX_STUDY=overoptimization another study.
"""

import csv
import json
import os
import random
import signal
import time

import pytest
import tiny_farm
from wide import wide

from rlhf_jax.evaluation.claims.published_claims import read_publication
from rlhf_jax.jobs.study.study_stages import plan_stages
from rlhf_jax.programs import check_values
from rlhf_jax.settings import load_page

pytestmark = [wide, pytest.mark.timeout(4 * 3600)]
STUDY = os.environ.get("RLHF_JAX_STUDY", "table2")
KILLS = 5
REPORT = ("verdicts.json", "comparison.csv")


def start(workdir):
    """Starts the study's command; what it prints is added to a file beside the workdir."""
    command = ["-m", "rlhf_jax.main", f"--config=configs/study.py:{STUDY},smoke", f"--workdir={workdir}"]
    with workdir.with_suffix(".log").open("a") as log:
        return tiny_farm.start(command, stdout=log)


def log_of(workdir):
    return workdir.with_suffix(".log").read_text()


def finish(workdir):
    assert start(workdir).wait() == 0, log_of(workdir)[-5000:]


def of_folder(workdir):
    """The files of the report by name, as they are compared."""
    return {name: (workdir / STUDY / name).read_text() for name in REPORT}


def marks(workdir):
    while True:
        try:
            return set(workdir.rglob("finished.json"))
        except FileNotFoundError:  # A folder of the running study that it has just moved or taken away.
            continue


def kill_after(workdir, finished, rng):
    """Runs the command until so many stages are finished and the next has begun, then kills it at a random moment."""
    process = start(workdir)
    while process.poll() is None and len(marks(workdir)) < finished:
        time.sleep(0.02)
    delay = time.monotonic() + rng.choice([0.0, 0.3, 3.0, 10.0]) * rng.random()
    while process.poll() is None and time.monotonic() < delay:
        time.sleep(0.01)
    assert process.poll() is None, f"it ended before it was killed:\n{log_of(workdir)[-5000:]}"
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("smoke") / "whole"
    finish(workdir)
    return workdir


def test_it_runs_to_the_end(whole):
    page = load_page(f"configs/study.py:{STUDY},smoke")
    check_values(page)
    assert len(marks(whole)) == len(plan_stages(page, str(whole)))
    found = of_folder(whole)
    publication = read_publication(tiny_farm.ROOT / f"configs/studies/{STUDY}.yaml")
    told = json.loads(found["verdicts.json"])
    assert [one["claim"] for one in told] == [claim.says for claim in publication.claims]
    rows = {row["row"]: row for row in csv.DictReader(found["comparison.csv"].splitlines())}
    assert set(publication.rows) <= set(rows)
    assert any(row[next(iter(publication.columns))] for row in rows.values())
    assert (whole / "report.html").read_text() == (whole / STUDY / "report.html").read_text()
    assert f"report: {whole}/report.html" in log_of(whole)


def test_a_second_run_makes_nothing_again(whole):
    before = {path: path.read_text() for path in marks(whole)}
    finish(whole)
    assert before == {path: path.read_text() for path in marks(whole)}


def test_killed_at_random_moments_it_ends_with_the_same_report(whole, tmp_path):
    seed = int(os.environ.get("RLHF_JAX_SEED", "0"))
    workdir, rng, stages = tmp_path / "killed", random.Random(f"{STUDY} {seed}"), len(marks(whole))
    for finished in sorted(rng.sample(range(stages - 1), KILLS)):
        kill_after(workdir, finished, rng)
        print(f"killed with {len(marks(workdir))} of {stages} stages finished", flush=True)
    finish(workdir)
    assert of_folder(workdir) == of_folder(whole)
    # What was finished when it was killed was not made again: the last run says so.
    assert log_of(workdir).count(": finished before") >= KILLS
