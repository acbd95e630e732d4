"""Advantage-weighted regression (Peng et al. 2019, arXiv 1910.00177, equation 10): better decisions count more.

The loss is `cloning`; only its weights differ.
"""

from __future__ import annotations

import numpy as np

from flywheel.filters.batch import Floats


def advantage_weights(advantage_M: Floats, beta: float, limit: float) -> Floats:
    """(M,): min(exp(A/β), limit), over their mean, so that the learning rate means what it means in cloning."""
    weight_M = np.minimum(np.exp(np.minimum(advantage_M / beta, np.log(limit))), limit)
    return np.asarray(weight_M / max(float(weight_M.mean()) if len(weight_M) else 1.0, 1e-12), np.float64)
