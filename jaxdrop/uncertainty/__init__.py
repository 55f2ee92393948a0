"""What samples of a prediction say: their spread, the parts of the spread, and its calibration.

Samples come from `jaxdrop.monte_carlo`, along the first axis. Functions with an
argument `probabilities` need only the mean over the samples, which
`monte_carlo_moments` returns. Logarithms are natural, so entropies are in nats.

The samples of dropout are a heuristic posterior. Their spread is set by the rate and
need not shrink with more data (Osband 2016). The mutual information of T samples is too
low: by a factor of 1 - 1/T if it is small, and it is at most ln T. Only a measured
calibration shows whether the spread is right for your data.

References:
  Gal, "Uncertainty in deep learning", thesis, Cambridge (2016), section 3.3;
  Depeweg et al., "Decomposition of uncertainty in Bayesian deep learning",
  arXiv:1710.07283 (2018), for the parts.
"""

from jaxdrop.uncertainty.calibration import (
    Calibration,
    classwise_calibration_error,
    expected_calibration_error,
    top_label_calibration_error,
)
from jaxdrop.uncertainty.crps import crps_ensemble, crps_mixture, crps_normal
from jaxdrop.uncertainty.decomposition import (
    Classification,
    Regression,
    classification,
    mutual_information,
    predictive_entropy,
    regression,
    variation_ratio,
)
from jaxdrop.uncertainty.intervals import (
    interval_coverage,
    interval_score,
    probability_integral_transform,
)
from jaxdrop.uncertainty.scores import (
    brier_score,
    classwise_brier_score,
    negative_log_likelihood,
    predictive_log_likelihood,
)

__all__ = [
    "Calibration",
    "Classification",
    "Regression",
    "brier_score",
    "classification",
    "classwise_brier_score",
    "classwise_calibration_error",
    "crps_ensemble",
    "crps_mixture",
    "crps_normal",
    "expected_calibration_error",
    "interval_coverage",
    "interval_score",
    "mutual_information",
    "negative_log_likelihood",
    "predictive_entropy",
    "predictive_log_likelihood",
    "probability_integral_transform",
    "regression",
    "top_label_calibration_error",
    "variation_ratio",
]


def __dir__() -> list[str]:
    return __all__
