"""Hypothesis strategies of schedules and documents."""

from __future__ import annotations

from hypothesis import strategies as st

from scheduler_search.rule import Rule, make_rule
from scheduler_search.schedule.document import ScheduleDocument
from scheduler_search.schedule.record import (
    Baseline,
    Difference,
    Estimate,
    Measured,
    PrefillMilliseconds,
    PrefillTeraflops,
    Provenance,
)
from scheduler_search.schedule.values import ModelIdentity, Reduction, Schedule, VisionReduction

DIGESTS = st.integers(0, 15).map(lambda digit: "sha256:" + f"{digit:x}" * 64)
SHARES = st.floats(0.0, 1.0)
POSITIVE = st.floats(1e-300, 1e300)
# Everything that can be written in UTF-8, empty texts left out.
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5)
)
PARAMETERS = st.dictionaries(
    TEXTS, st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(TEXTS, SCALARS, max_size=2)), max_size=4
)

DECODER_RULES: st.SearchStrategy[Rule] = st.one_of(
    st.builds(
        lambda rows, heads: make_rule("attention-rank", {"query_rows": rows, "head_reduction": heads}),
        st.sampled_from(["instruction", "last", "all"]),
        st.sampled_from(["mean", "max", "sum"]),
    ),
    st.builds(lambda seed: make_rule("random", {"seed": seed}), st.integers(0, 2**70)),
)
ENTRY_RULES = st.sampled_from([make_rule("pooling"), make_rule("random")])
VISION_RULES = st.sampled_from([make_rule("tome"), make_rule("evit")])


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    tower = draw(st.none() | st.lists(SHARES, min_size=1, max_size=4).map(lambda rates: sorted(rates, reverse=True)))
    left = 1.0 if tower is None else tower[-1]
    rates = sorted((rate * left for rate in draw(st.lists(SHARES, min_size=1, max_size=8))), reverse=True)
    entry_rule = draw(ENTRY_RULES if rates[0] < left else st.none() | ENTRY_RULES)
    vision = None if tower is None else VisionReduction(tuple(tower), draw(VISION_RULES))
    identity = ModelIdentity(
        id=draw(st.sampled_from(["tiny-llava", "llava-hf/llava-1.5-7b-hf", "größe"])),
        revision=draw(st.text(st.characters(codec="utf-8"), max_size=5)),
        architecture=draw(TEXTS),
        decoder_layers=len(rates),
        vision_layers=draw(st.integers(0, 40)) if tower is None else len(tower),
        config_digest=draw(DIGESTS),
    )
    return Schedule(identity, Reduction(tuple(rates), draw(DECODER_RULES), entry_rule, vision))


def differences() -> st.SearchStrategy[Difference]:
    ends = st.tuples(st.floats(-2.0, 2.0), st.floats(-2.0, 2.0)).map(lambda pair: (min(pair), max(pair)))
    return st.builds(Difference, mean=st.floats(-1.0, 1.0), interval=ends)


def measurements() -> st.SearchStrategy[Measured]:
    estimates = st.builds(Estimate, score=SHARES, standard_error=SHARES)
    baselines = st.builds(
        Baseline,
        name=TEXTS,
        rule=TEXTS,
        score=SHARES,
        difference=differences(),
        flops_ratio=POSITIVE,
        beaten=st.booleans(),
    )
    return st.builds(
        Measured,
        metric=TEXTS,
        samples=st.integers(1, 10**9),
        reduced=estimates,
        unreduced=estimates,
        difference=differences(),
        tflops=st.builds(PrefillTeraflops, formula=TEXTS, reduced=POSITIVE, unreduced=POSITIVE),
        kv_cache_ratio=SHARES,
        vision_kv_cache_ratio=SHARES,
        prefill_milliseconds=st.none()
        | st.builds(PrefillMilliseconds, device=TEXTS, reduced=POSITIVE, unreduced=POSITIVE),
        baselines=st.lists(baselines, max_size=2).map(tuple),
    )


@st.composite
def documents(draw: st.DrawFn) -> ScheduleDocument:
    measured = draw(st.none() | measurements())
    provenance = Provenance(
        study=draw(TEXTS),
        algorithm=draw(TEXTS),
        algorithm_parameters=draw(PARAMETERS),
        search_data_digest=draw(DIGESTS),
        validation_data_digest=None if measured is None else draw(DIGESTS),
        search_samples=draw(st.integers(0, 1000)),
        validation_samples=0 if measured is None else measured.samples,
        seed=draw(st.integers()),
        software=draw(st.dictionaries(TEXTS, TEXTS, max_size=3)),
    )
    created = draw(st.datetimes()).isoformat() + draw(st.sampled_from(["Z", "+00:00"]))
    return ScheduleDocument(draw(schedules()), provenance, measured, created)
