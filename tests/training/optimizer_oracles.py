"""Each optimizer's direction in float64 NumPy, written from its paper or from PyTorch's loop; one leaf at a time."""

import numpy as np


class RMSprop:
    def __init__(self, b1, b2, eps):
        self.b1, self.b2, self.eps, self.v, self.m = b1, b2, eps, 0.0, 0.0

    def __call__(self, g):
        self.v = self.b2 * self.v + (1 - self.b2) * g * g
        self.m = self.b1 * self.m + g / (np.sqrt(self.v) + self.eps)
        return self.m


class SGD:
    def __init__(self, b1, b2, eps):
        self.b1, self.m = b1, 0.0

    def __call__(self, g):
        self.m = self.b1 * self.m + g
        return self.m


class Lion:
    def __init__(self, b1, b2, eps):
        self.b1, self.b2, self.m = b1, b2, 0.0

    def __call__(self, g):
        direction = np.sign(self.b1 * self.m + (1 - self.b1) * g)
        self.m = self.b2 * self.m + (1 - self.b2) * g
        return direction


class AdamW:
    def __init__(self, b1, b2, eps, tensorflow=False):
        self.b1, self.b2, self.eps, self.tensorflow = b1, b2, eps, tensorflow
        self.t, self.m, self.v = 0, 0.0, 0.0

    def __call__(self, g):
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g * g
        c1, c2 = 1 - self.b1**self.t, 1 - self.b2**self.t
        if self.tensorflow:
            return np.sqrt(c2) / c1 * self.m / (np.sqrt(self.v) + self.eps)
        return (self.m / c1) / (np.sqrt(self.v / c2) + self.eps)


class AdamWTF(AdamW):
    def __init__(self, b1, b2, eps):
        super().__init__(b1, b2, eps, tensorflow=True)


class Adafactor:
    """Of one matrix [n, m] or vector. Algorithm 4 of the paper: V = R C / mean(R), RMS clipped to 1."""

    def __init__(self, b1, b2, eps):
        self.b1, self.b2, self.t, self.m = b1, b2, 0, 0.0
        self.row, self.column, self.v = 0.0, 0.0, 0.0

    def __call__(self, g):
        self.t += 1
        decay = min(self.b2, 1 - self.t**-0.8)
        square = g * g + 1e-30
        if g.ndim == 2 and min(g.shape) >= 128:
            self.row = decay * self.row + (1 - decay) * square.sum(1)
            self.column = decay * self.column + (1 - decay) * square.sum(0)
            v = np.outer(self.row, self.column) / self.row.sum()
        else:
            self.v = v = decay * self.v + (1 - decay) * square
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt(np.mean(u * u)))
        self.m = self.b1 * self.m + (1 - self.b1) * u if self.b1 else u
        return self.m


BY_NAME = {
    "adamw": AdamW,
    "adamw_tf": AdamWTF,
    "adafactor": Adafactor,
    "rmsprop": RMSprop,
    "lion": Lion,
    "sgd": SGD,
}
