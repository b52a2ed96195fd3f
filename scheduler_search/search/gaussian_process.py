"""Expected improvement on a Gaussian process over a stage's candidates, maximised exactly by enumeration.

Knows: torch, BoTorch and GPyTorch (this is the one module that imports them). Does not know: trials, seeds of
studies, or Optuna. Everything is float64 on the CPU; the number of threads is the caller's business, and one is
fastest.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from botorch.acquisition.analytic import LogExpectedImprovement
from botorch.exceptions.warnings import InputDataWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.utils.sampling import manual_seed
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import MaternKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from scheduler_search.search.observation import Observation
from scheduler_search.search.stage import Stage

# Least variance of the noise, in units of the variance of the observed objectives. Where no sample changed its score
# the paired variance is 0; but the score is a step function, and between two candidates it can still move by a
# sample.
NOISE_FLOOR = 1e-4

# Score curves have knees, and a stage is one-dimensional: a Matern kernel whose lengthscale is expected to be a fifth
# of the domain, within a factor of 4. BoTorch's default (a smooth kernel, lengthscale 4) is made for many dimensions:
# over 48 to 60 simulated searches of 577 candidates the mean regret fell from 0.0020 to 0.0013 on a late rise with
# paired samples, and from 0.022 to 0.0045 on a narrow bump with independent noise.
_LENGTHSCALE = 0.2
_LOG_LENGTHSCALE_DEVIATION = 0.75
_SHORTEST_LENGTHSCALE = 0.025

# A spread of objectives below this is rounding: standardising it would make a signal of it.
_CONSTANT = 1e-9

# Logarithms of expected improvement closer than this are equal.
_TIE = 1e-9


def most_improving(stage: Stage, observations: Sequence[Observation], free: Sequence[int], seed: int) -> int:
    """The candidate in ``free`` with the largest expected improvement; the first of equal ones.

    Args:
        observations: at least one.
        free: candidates to choose from, in order of preference.
        seed: of the random restarts that BoTorch makes where the fit of the hyperparameters fails.
    """
    with manual_seed(seed), _expected_warnings():
        values = _log_expected_improvement(stage, observations, free).tolist()
    largest = max(values)
    return next(index for index, value in zip(free, values, strict=True) if value >= largest - _TIE)


def _log_expected_improvement(stage: Stage, observations: Sequence[Observation], free: Sequence[int]) -> Tensor:
    """Logarithm of the expected improvement at ``free``, shape [candidates]."""
    # The improvement is over the best observed value, which is what a stage decides on, not over the model's best mean.
    points = _features(stage, [observation.candidate for observation in observations])
    values, variances = _standardised(stage, observations)
    model = SingleTaskGP(points, values, variances, covar_module=_kernel(), outcome_transform=None)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    with torch.no_grad():
        acquisition = LogExpectedImprovement(model, best_f=values.max())
        result: Tensor = acquisition(_features(stage, free).unsqueeze(-2))
    return result


def _kernel() -> MaternKernel:
    return MaternKernel(
        nu=2.5,
        lengthscale_prior=LogNormalPrior(math.log(_LENGTHSCALE), _LOG_LENGTHSCALE_DEVIATION),
        lengthscale_constraint=GreaterThan(_SHORTEST_LENGTHSCALE, transform=None, initial_value=_LENGTHSCALE),
    )


def _features(stage: Stage, candidates: Sequence[int]) -> Tensor:
    """Coordinates in [0, 1], shape [candidates, 1]: the part of the first coordinate that the stage covers."""
    top = max(one.features[0] for one in stage.candidates) or 1.0
    features = [stage.candidates[candidate].features[0] / top for candidate in candidates]
    return torch.tensor(features, dtype=torch.float64).unsqueeze(-1)


def _standardised(stage: Stage, observations: Sequence[Observation]) -> tuple[Tensor, Tensor]:
    """Objectives relative to the anchor with mean 0 and variance 1, and the variances of their noise, each [n, 1].

    The noise is that of the paired difference; the penalty is known exactly and adds none.
    """
    objectives = [one.difference - stage.candidates[one.candidate].penalty for one in observations]
    values = torch.tensor(objectives, dtype=torch.float64).unsqueeze(-1)
    variances = torch.tensor([one.variance for one in observations], dtype=torch.float64).unsqueeze(-1)
    spread = float(values.std()) if len(observations) > 1 else 0.0
    scale = spread if spread > _CONSTANT else 1.0
    return (values - values.mean()) / scale, (variances / scale**2).clamp_min(NOISE_FLOOR)


@contextmanager
def _expected_warnings() -> Iterator[None]:
    """Silence what BoTorch says of a single or of constant observations: they cannot have variance 1, and need not."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Data .outcome observations. is not standardized", category=InputDataWarning
        )
        yield
