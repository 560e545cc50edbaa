"""Replays recorded AlpacaEval judgments through the whole annotation layer and compares with what was published.

    python benchmarks/replay_alpaca_eval.py RESULTS [--published LEADERBOARD.csv]

RESULTS holds MODEL/model_outputs.json and MODEL/ANNOTATOR/annotations.json, each perhaps gzipped, as in the
results/ folder of AlpacaEval's repository. For every annotations file a local server answers with the recorded
answers; they are asked for through the OpenAI client, the cache and the parsers, under the shipped judges
(configs/judges) with the annotator's own names for the outputs, its price, and no threshold on the probability
mass (AlpacaEval has none). Then, row by row: the preference (1e-9) and the price (1e-12) must equal the recorded
ones; the win rate and its standard error must equal those of the recorded preferences (1e-9) and, with
--published, those in the leaderboard's row of that name; the counts must be equal; and a second run must ask
nothing. Exit status 1 when anything differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from replay.recorded import ORDERED, RANKING, WEIGHTED, Recorded, preference, read_results
from replay.server import ReplayServer

from rlhf_jax.annotation import annotate_pairs
from rlhf_jax.annotation.costs.prices import Price
from rlhf_jax.annotation.judges.specs import JudgeSpec, PoolSpec, load_judge
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.leaderboards.leaderboard import average_length
from rlhf_jax.evaluation.leaderboards.published import PublishedRow, read_published
from rlhf_jax.evaluation.measures.win_rate import WinRate, win_rate

TOLERANCE, CENT_OF_NOTHING = 1e-9, 1e-12
JUDGES = Path(__file__).resolve().parents[1] / "configs" / "judges"
CONTRACTS = {WEIGHTED: "gpt4_weighted", ORDERED: "gpt4_cot", RANKING: "gpt4_ranking"}
LOW_MASS = 0.9  # the shipped judge's threshold; rows below are counted, not dropped


@dataclasses.dataclass(frozen=True)
class Replayed:
    """One annotations file after its replay: what came out, and what is wrong with it."""

    recorded: Recorded
    rate: WinRate
    avg_length: int
    usd: float
    asked: int
    low_mass: int
    wrong: tuple[str, ...]


def judge_for(recorded: Recorded) -> JudgeSpec:
    """The shipped judge of the annotator's contract, under the annotator's names and price."""
    spec = load_judge(JUDGES / f"{CONTRACTS[recorded.form]}.yaml")
    first, second = ((one,) for one in recorded.names)
    per_million = recorded.usd_per_token * 1e6
    return dataclasses.replace(
        spec,
        name=recorded.annotator,
        model=recorded.annotator,
        parser=dataclasses.replace(spec.parser, first=first, second=second, min_mass=0.0),
        base_url="replay",
        api_key_env="",
        price=Price(per_million, per_million),
    )


def replay(recorded: Recorded, published: PublishedRow | None = None) -> Replayed:
    """Asks for every row of one annotations file, twice over one cache, and compares."""
    spec = judge_for(recorded)
    pool = PoolSpec(spec.name, (spec,), (1.0,))
    pairs = [{name: row[name] for name in ("instruction", "output_1", "output_2")} for row in recorded.rows]
    with ReplayServer(recorded) as server, tempfile.TemporaryDirectory() as folder:
        how = {"cache_path": Path(folder) / "answers.sqlite", "base_urls": {"replay": server.url}}
        done = annotate_pairs(pairs, pool, **how)
        asked = server.asked
        again = annotate_pairs(pairs, pool, **how)
        asked_again = server.asked - asked
    labels = [row["preference"] for row in done.rows]
    rate = win_rate(labels)
    wrong = [f"the second run asked {asked_again} again"] if asked_again else []
    if [row["preference"] for row in again.rows] != labels:
        wrong.append("the second run, from the cache, labels otherwise")
    wrong += _rows_wrong(recorded, done.rows) + _rate_wrong(recorded, rate)
    length = average_length([row["output"] for row in recorded.outputs])
    if published is not None:
        wrong += _published_wrong(published, rate, length)
    return Replayed(
        recorded,
        rate,
        length,
        sum(row["price_usd"] or 0.0 for row in done.rows),
        asked,
        sum(row["coverage_mass"] is not None and row["coverage_mass"] < LOW_MASS for row in done.rows),
        tuple(wrong),
    )


def _rows_wrong(recorded: Recorded, rows: list[dict]) -> list[str]:
    labels = prices = 0
    for before, after in zip(recorded.rows, rows, strict=True):
        was, now = preference(before), after["preference"]
        labels += (was is None) != (now is None) or (was is not None and abs(was - now) > TOLERANCE)
        paid, cost = before.get("price_per_example"), after["price_usd"]
        prices += after["order"] is not None and paid is not None and abs(paid - cost) > CENT_OF_NOTHING
    told = [f"{labels} preferences differ from the recorded ones"] if labels else []
    return told + ([f"{prices} prices differ from the recorded ones"] if prices else [])


def _rate_wrong(recorded: Recorded, rate: WinRate) -> list[str]:
    """Against the formulas written out over the recorded preferences."""
    scores = [label - 1 for label in map(preference, recorded.rows) if label is not None]
    expected = {
        "win_rate": 100 * statistics.fmean(scores),
        "standard_error": 100 * statistics.stdev(scores) / len(scores) ** 0.5,
        "n_total": len(scores),
        "n_wins": sum(score > 0.5 for score in scores),
        "n_wins_base": sum(score < 0.5 for score in scores),
        "n_draws": sum(score == 0.5 for score in scores),
    }
    return _differences(expected, rate, "the recorded rows")


def _published_wrong(published: PublishedRow, rate: WinRate, length: int) -> list[str]:
    found = _differences(published.numbers(), rate, "the leaderboard")
    if published.avg_length is not None and published.avg_length != length:
        found.append(f"average length {length}, on the leaderboard {published.avg_length}")
    return found


def _differences(expected: dict, rate: WinRate, where: str) -> list[str]:
    return [
        f"{name} {getattr(rate, name)!r}, by {where} {value!r}"
        for name, value in expected.items()
        if abs(getattr(rate, name) - value) > TOLERANCE
    ]


def line(done: Replayed) -> str:
    """A row of the table."""
    rate, recorded = done.rate, done.recorded
    cells = [f"{recorded.model:<24} {recorded.annotator:<34} {recorded.form:<8}"]
    cells += [f"{rate.win_rate:14.10f} {rate.standard_error:12.10f} {rate.discrete_win_rate:14.10f}"]
    cells += [f"{rate.n_wins:4d} {rate.n_draws:4d} {rate.n_wins_base:4d} {rate.n_total:5d}"]
    cells += [f"{done.avg_length:6d} {done.asked:5d} {done.usd:9.5f} {done.low_mass:4d}"]
    return " ".join([*cells, "same" if not done.wrong else "DIFFERS"])


HEAD = (
    f"{'model':<24} {'annotator':<34} {'form':<8} {'win rate':>14} {'std. error':>12} {'discrete':>14} "
    f"{'wins':>4} {'draw':>4} {'lost':>4} {'n':>5} {'length':>6} {'asked':>5} {'usd':>9} {'mass':>4}"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument(
        "--published", type=Path, help="AlpacaEval's leaderboard CSV of one of the annotators"
    )
    parser.add_argument("--annotator", default="", help="only this one; needed with --published")
    options = parser.parse_args()
    try:
        if options.published and not options.annotator:
            raise UserError("annotator: not given; a leaderboard belongs to one, name it with --annotator")
        board = read_published(options.published) if options.published else {}
        found = read_results(options.results)
        chosen = [one for one in found if options.annotator in ("", one.annotator)]
        if not chosen:
            names = ", ".join(sorted({one.annotator for one in found}))
            raise UserError(f"annotator: {options.annotator!r} has no annotations; there are {names}")
        print(HEAD, flush=True)
        failed = 0
        for recorded in chosen:
            done = replay(recorded, board.get(recorded.model))
            failed += bool(done.wrong)
            print(line(done), *(f"    {what}" for what in done.wrong), sep="\n", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{len(chosen) - failed} of {len(chosen)} as {'published' if board else 'recorded'}; "
        f"mass: rows with less than {LOW_MASS:g} of the probability on the two names"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
