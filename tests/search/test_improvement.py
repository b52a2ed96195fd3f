from __future__ import annotations

import dataclasses
import itertools

import numpy
import pytest

from scheduler_search.search.curve import Array, Points, believe
from scheduler_search.search.improvement import Contest

PLACES = numpy.linspace(0.0, 1.0, 41)[:, None]


def _contest(*, ceiling: float = 10.0, best: float = 0.0, penalty: float = 0.0) -> Contest:
    """A smooth hump at 0.3, measured at five places."""
    places = numpy.array([[0.0], [0.2], [0.5], [0.8], [1.0]])
    values = 0.2 * numpy.sin(numpy.pi * (places[:, 0] + 0.2)) - 0.2
    belief = believe(Points(places, numpy.zeros(5), values, numpy.full(5, 1e-4)), PLACES, 100)
    return Contest(belief, penalty * PLACES[:, 0], ceiling, best)


def _sampled(contest: Contest, columns: list[int], draws: int = 100_000) -> float:
    """Expected improvement of a batch by plain sampling."""
    generator = numpy.random.default_rng(0)
    covariance = contest.belief.covariances(numpy.array(columns))[:, columns]
    total = 0.0
    for weight, mean, matrix in zip(contest.belief.weights, contest.belief.means, covariance, strict=True):
        values = generator.multivariate_normal(mean[columns], matrix, draws)
        objectives = numpy.minimum(values, contest.ceiling) - contest.penalties[columns]
        total += weight * numpy.maximum(objectives.max(1) - contest.best, 0.0).mean()
    return total


@pytest.mark.parametrize("ceiling", [10.0, 0.01])
@pytest.mark.parametrize("candidate", [3, 12, 30])
def test_gains_are_expected_improvements(candidate: int, ceiling: float) -> None:
    """Against 100000 draws for each setting, whose standard error is below 0.5 % here; fixed seed."""
    contest = _contest(best=-0.01, penalty=0.05, ceiling=ceiling)
    assert contest.gains()[candidate] == pytest.approx(_sampled(contest, [candidate]), rel=0.03)


def test_who_cannot_win_has_nothing_to_gain() -> None:
    contest = _contest(ceiling=0.02, best=0.0, penalty=0.05)
    cannot = contest.penalties >= 0.02
    assert cannot.any()
    assert (contest.gains()[cannot] == 0).all()
    assert (contest.gains()[~cannot] > 0).all()


@pytest.mark.slow
def test_the_gain_of_a_batch_is_that_of_botorch() -> None:
    """The value of a pair against qLogExpectedImprovement with a pending point, on one setting; Monte Carlo, 3 %."""
    torch = pytest.importorskip("torch")
    from botorch.acquisition.logei import qLogExpectedImprovement
    from botorch.models import SingleTaskGP
    from botorch.sampling import SobolQMCNormalSampler

    contest = _one_setting(_contest(best=-0.02))
    mean, covariance = contest.belief.means[0], contest.belief.covariances(numpy.arange(41))[0]

    class Known(SingleTaskGP):  # a model whose posterior is given
        def posterior(self, X, *_, **__):  # type: ignore[no-untyped-def]
            from botorch.posteriors import GPyTorchPosterior
            from gpytorch.distributions import MultivariateNormal

            index = (X[..., 0] * 40).round().long()
            matrix = torch.as_tensor(covariance)[index[..., :, None], index[..., None, :]]
            return GPyTorchPosterior(MultivariateNormal(torch.as_tensor(mean)[index], matrix))

    model = Known(torch.zeros(2, 1, dtype=torch.float64), torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    acquisition = qLogExpectedImprovement(
        model,
        best_f=contest.best,
        sampler=SobolQMCNormalSampler(torch.Size([4096]), seed=0),
        X_pending=torch.tensor([[PLACES[12, 0]]], dtype=torch.float64),
        tau_max=1e-4,
        tau_relu=1e-8,
    )
    others = numpy.delete(numpy.arange(41), 12)
    theirs = acquisition(torch.as_tensor(PLACES[others])[:, None]).exp().detach().numpy()
    ours = contest.gains()[12] + contest._gains_beside([12], 0)[others]
    assert ours == pytest.approx(theirs, rel=0.03)
    assert abs(int(ours.argmax()) - int(theirs.argmax())) <= 1


def _one_setting(contest: Contest) -> Contest:
    belief = contest.belief
    first = numpy.array([int(belief.weights.argmax())])
    alone = dataclasses.replace(
        belief,
        weights=numpy.ones(1),
        means=belief.means[first],
        variances=belief.variances[first],
        _settings=belief._settings.chosen(first),
        _explained=belief._explained[first],
    )
    return dataclasses.replace(contest, belief=alone)


def test_a_batch_is_a_function_of_its_seed_and_starts_with_the_best_single_candidate() -> None:
    contest = _contest()
    assert contest.choose(4, 1) == contest.choose(4, 1)
    assert contest.choose(1, 1) == contest.choose(1, 2) == (int(contest.gains().argmax()),)
    assert contest.choose(4, 1)[:2] == contest.choose(2, 1)
    assert len(set(contest.choose(12, 0))) == 12


@pytest.mark.slow
def test_a_chosen_batch_is_worth_more_than_random_ones_and_about_as_much_as_any_pair() -> None:
    """Fixed seeds; draws have a standard error of about 1 %."""
    contest = _contest()
    chosen = list(contest.choose(3, 0))
    generator = numpy.random.default_rng(1)
    random = [_sampled(contest, generator.choice(41, 3, replace=False).tolist(), 5000) for _ in range(20)]
    assert _sampled(contest, chosen, 5000) > 1.5 * numpy.mean(random)
    pairs = itertools.combinations(range(0, 41, 5), 2)
    assert _sampled(contest, chosen[:2], 5000) > 0.95 * max(_sampled(contest, list(pair), 5000) for pair in pairs)


def test_tiny_improvements_are_still_compared() -> None:
    """Where draws would all be 0, gains beside a pending candidate are not."""
    contest = _contest(best=0.2)
    gains: Array = contest._gains_beside([12], 0)
    assert gains.max() > 0
