"""How hard every instruction is for models compared with one baseline: one joint fit over many models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import sparse

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.length_control import instruction_key, scaled_difference
from rlhf_jax.evaluation.measures.logistic import fit_logistic
from rlhf_jax.evaluation.measures.win_rate import read_preferences

_SMALL_RIDGE = 1e-3  # on the models' own weights


def instruction_difficulty(models: Sequence[Sequence[Mapping]], *, ridge: float = 0.1) -> dict[str, float]:
    """Difficulties by `instruction_key`, from the label rows of several models against one baseline.

    logit P(m wins i) = phi_m tanh(delta_mi / std_m) + theta_m + difficulty_i, with a ridge on the difficulties
    that keeps an instruction every model loses finite; centred on 0. The higher the number, the better the
    models do on it. It is shared by all models, so one that is measured later moves no other. (AlpacaEval's
    own come from the same kind of fit; its file of them is no part of its repository.)

    Raises UserError for no rows, no label, or rows of several baselines.
    """
    baselines = {row.get("generator_1") for rows in models for row in rows}
    if len(baselines) != 1:
        raise UserError(
            f"rows: {len(models)} models against {len(baselines)} baselines; give rows against one baseline"
        )
    keys = list(dict.fromkeys(instruction_key(row) for rows in models for row in rows))
    number = {key: i for i, key in enumerate(keys)}
    i_N = np.array([number[instruction_key(row)] for rows in models for row in rows])
    m_N = np.repeat(np.arange(len(models)), [len(rows) for rows in models])
    t_N = np.concatenate([_lengths(rows) for rows in models])
    y_N = read_preferences([row["preference"] for rows in models for row in rows]) - 1
    known = ~np.isnan(y_N)
    if not known.any():
        raise UserError(f"preference: none of the {len(y_N)} rows has a label; annotate them first")
    found = _fit(i_N[known], m_N[known], t_N[known], y_N[known], (len(keys), len(models)), ridge)
    return dict(zip(keys, map(float, found - found.mean()), strict=True))


def _lengths(rows: Sequence[Mapping]) -> np.ndarray:
    """The length difference of a model's rows; where it never varies, as in one row, it is part of the model."""
    differences = {len(row["output_1"]) - len(row["output_2"]) for row in rows}
    return scaled_difference(rows, "length", len) if len(differences) > 1 else np.zeros(len(rows))


def difficulty_rows(rows: Sequence[Mapping], *, least_models: int = 2) -> list[dict]:
    """A table of difficulties: instruction, input, difficulty and n_models, from label rows of many models.

    [] where rows have no outputs that are text, several baselines, or fewer than `least_models` models.
    """
    models: dict[object, list[Mapping]] = {}
    for row in rows:
        models.setdefault(row.get("generator_2"), []).append(row)
    one_baseline = len({row.get("generator_1") for row in rows}) == 1
    if (
        len(models) < least_models
        or not one_baseline
        or not all(isinstance(row.get(name), str) for row in rows for name in ("output_1", "output_2"))
    ):
        return []
    found = instruction_difficulty(list(models.values()))
    asked: dict[str, tuple[Mapping, set]] = {}
    for row in rows:
        asked.setdefault(instruction_key(row), (row, set()))[1].add(row.get("generator_2"))
    return [
        {
            "instruction": row["instruction"],
            "input": row.get("input") or "",
            "difficulty": found[key],
            "n_models": len(judged),
        }
        for key, (row, judged) in asked.items()
    ]


def _fit(
    i_N: np.ndarray, m_N: np.ndarray, t_N: np.ndarray, y_N: np.ndarray, sizes: tuple[int, int], ridge: float
) -> np.ndarray:
    """Difficulties [I]. Columns are difficulty [I], phi [M], theta [M], of which a row has one each."""
    (I, M), N = sizes, len(y_N)
    # A feature divided by the root of its own ridge has a ridge of 1: so the fit needs to know no more than that.
    small, own = np.full(N, _SMALL_RIDGE**-0.5), np.full(N, ridge**-0.5)
    columns = np.stack([i_N, I + m_N, I + M + m_N], axis=1)
    values = np.stack([own, small * t_N, small], axis=1)
    design = sparse.csr_array((values.ravel(), columns.ravel(), np.arange(0, 3 * N + 1, 3)), (N, I + 2 * M))
    return fit_logistic(design, y_N, ridge=1.0)[:I] * own[0]
