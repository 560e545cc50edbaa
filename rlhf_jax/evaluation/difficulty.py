"""How hard every instruction is for models compared with one baseline: one joint fit over many models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.length_control import instruction_key, scaled_difference
from rlhf_jax.evaluation.logistic import cross_entropy, descend, sigmoid
from rlhf_jax.evaluation.win_rate import read_preferences

_SMALL_RIDGE, _STEPS, _TOLERANCE = 1e-3, 100, 1e-10


def instruction_difficulty(models: Sequence[Sequence[Mapping]], *, ridge: float = 0.1) -> dict[str, float]:
    """Difficulties by `instruction_key`, from the label rows of several models against one baseline.

    logit P(m wins i) = phi_m tanh(delta_mi / std_m) + theta_m + difficulty_i, with a ridge on the difficulties
    that keeps an instruction every model loses finite; centred on 0. The higher the number, the better the
    models do on it. It is shared by all models, so one that is measured later moves no other. (AlpacaEval's
    own come from the same kind of fit; its file of them is no part of its repository.)

    Newton's method; the instructions, whose part of the Hessian is diagonal, are eliminated first. Raises
    UserError for no rows, no label, or rows of several baselines.
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
    t_N = np.concatenate([scaled_difference(rows, "length", len) for rows in models])
    y_N = read_preferences([row["preference"] for rows in models for row in rows]) - 1
    known = ~np.isnan(y_N)
    if not known.any():
        raise UserError(f"preference: none of the {len(y_N)} rows has a label; annotate them first")
    found = _fit(i_N[known], m_N[known], t_N[known], y_N[known], (len(keys), len(models)), ridge)
    return dict(zip(keys, map(float, found - found.mean()), strict=True))


def difficulty_rows(rows: Sequence[Mapping], *, least_models: int = 2) -> list[dict]:
    """A table of difficulties: instruction, input, difficulty and n_models, from label rows of many models.

    [] where the rows have no outputs, several baselines, or fewer than `least_models` models.
    """
    models: dict[object, list[Mapping]] = {}
    for row in rows:
        models.setdefault(row.get("generator_2"), []).append(row)
    one_baseline = len({row.get("generator_1") for row in rows}) == 1
    if len(models) < least_models or not one_baseline or not all("output_1" in row for row in rows):
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
    """Difficulties [I]. Parameters are laid out as difficulty [I], phi [M], theta [M]."""
    I, M = sizes
    ridges = np.concatenate([np.full(I, ridge), np.full(2 * M, _SMALL_RIDGE)])

    def logits(w: np.ndarray) -> np.ndarray:
        return w[i_N] + w[I + m_N] * t_N + w[I + M + m_N]

    def loss(w: np.ndarray) -> float:
        return float(cross_entropy(y_N, logits(w)).sum() + 0.5 * (ridges * w) @ w)

    def gather(values_N: np.ndarray) -> np.ndarray:
        parts = (np.bincount(i_N, values_N, I), np.bincount(m_N, values_N * t_N, M))
        return np.concatenate([*parts, np.bincount(m_N, values_N, M)])

    w = np.zeros(I + 2 * M)
    for _ in range(_STEPS):
        p = sigmoid(logits(w))
        gradient, h_N = gather(p - y_N) + ridges * w, p * (1 - p)
        diagonal = np.bincount(i_N, h_N, I) + ridges[:I]
        cross = np.zeros((I, 2 * M))
        np.add.at(cross, (i_N, m_N), h_N * t_N)
        np.add.at(cross, (i_N, M + m_N), h_N)
        corner = np.zeros((2 * M, 2 * M))
        phi, theta, mixed = (np.bincount(m_N, h_N * x, M) for x in (t_N**2, np.ones_like(t_N), t_N))
        at = np.arange(M)
        corner[at, at], corner[M + at, M + at] = phi, theta
        corner[at, M + at] = corner[M + at, at] = mixed
        corner += np.diag(ridges[I:])
        schur = corner - cross.T @ (cross / diagonal[:, None])
        step_models = np.linalg.solve(schur, gradient[I:] - cross.T @ (gradient[:I] / diagonal))
        step = np.concatenate([(gradient[:I] - cross @ step_models) / diagonal, step_models])
        if gradient @ step < _TOLERANCE:
            break
        w = descend(loss, w, -step)
    return w[:I]
