"""A bridge from the degraded image y to the clean image x (InDI, Delbracio & Milanfar 2023, arXiv 2303.11435).

The paper's chain starts from y buried in noise. A bridge starts from y itself:

    x_t = (1 - t) x + t y,    t from 1 (the degraded image) to 0 (the clean one)

A network that is trained to predict x from x_t is walked back in a few steps, each of which goes a part of the way.
"""


def between(x, y, t):
    """x_t = (1 - t) x + t y; t in [0, 1], a number or (N, 1, 1, 1)."""
    return (1 - t) * x + t * y


def walk(predict, y, steps):
    """From x_1 = y to x_0 in `steps` equal steps; yields (t, x_t, x_hat) per step, at last (0, x_0, x_0).

    predict(x_t, t) -> x_hat, t a number. A step from t to s < t keeps s / t of the way that is left (InDI, equation 8):
    x_s = (s / t) x_t + (1 - s / t) x_hat. One step is plain regression, x_0 = predict(y, 1).
    """
    x_t = y
    for k in range(steps, 0, -1):
        t, s = k / steps, (k - 1) / steps
        x_hat = predict(x_t, t)
        yield t, x_t, x_hat
        x_t = s / t * x_t + (1 - s / t) * x_hat
    yield 0.0, x_t, x_t
