"""Reductions inside the vision tower, and rules that read it: against eager models that are masked, or only watched."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from scheduler_search.errors import UnsupportedError
from scheduler_search.reducers import Reducer, Tokens
from scheduler_search.reducers.attention import least_attended
from scheduler_search.rule import Reads, make_rule
from scheduler_search.runtime import apply_reduction, compute_features, views_wanted
from scheduler_search.schedule.values import Reduction, VisionReduction
from tests.runtime import towers
from tests.runtime.families import BUILDERS
from tests.runtime.flash import emulated_kernels, use_flash
from tests.runtime.reference_mask import masked_forward, masked_generate
from tests.runtime.test_host_transfers import counted
from tests.runtime.test_threads import together
from tests.runtime.tiny import LAYERS, TOKENS, batch, generate, quick_first, single_of

KINDS = ("clip", "siglip")
TOWER = (1.0, 0.75, 0.5, 0.5)
RULE, EVIT = make_rule("attention-rank"), make_rule("evit")


@cache
def model_of(kind: str = "clip", attention: str = "sdpa") -> Any:
    return towers.build(kind, attention)


def reducing(
    rates: tuple[float, ...] = (0.5,), tower: tuple[float, ...] | None = TOWER, entry: str | None = None
) -> Reduction:
    rates = (*rates, *[rates[-1]] * (LAYERS - len(rates)))
    rule = None if entry is None else make_rule(entry)
    return Reduction(rates, RULE, rule, None if tower is None else VisionReduction(tower, EVIT))


def pruning(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Inside the tower, every rule drops what receives least attention, of the class token if there is one."""
    rows: Any = "class" if kind == "clip" else "vision"
    towers.use_reducer(monkeypatch, "vision", Reducer(EVIT, Reads(rows=rows), least_attended))


def survivors(reference: towers.MaskedTower, inputs: dict[str, torch.Tensor]) -> Any:
    """What is left of each sample, in the slots of the prompt, as the decoder's reference asks for it."""

    def entry(_hidden: torch.Tensor, sample: int, left: list[int]) -> list[int]:
        images = (inputs["input_ids"] == 90).sum(1) // TOKENS
        first = int(images[:sample].sum())
        dead = reference.dead[first : first + int(images[sample])].flatten().tolist()
        return [slot for slot, gone in zip(left, dead, strict=True) if not gone]

    return entry


# -- dropping equals masking


@pytest.mark.parametrize("attention", quick_first(["sdpa", "eager"]))
@pytest.mark.parametrize("kind", KINDS)
def test_dropping_in_the_tower_equals_masking(kind: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pruning(monkeypatch, kind)
    inputs, eager = batch("varying"), model_of(kind, "eager")
    rates = (0.5, 0.5, 0.25, 0.25, 0.25, 0.25)
    with towers.MaskedTower(eager, kind, TOWER) as reference:
        entry = survivors(reference, inputs)
        expected = masked_forward(eager, rates, inputs, 3, entry=entry)
        text, logits = masked_generate(eager, rates, inputs, 4, entry=entry)
    model = model_of(kind, attention)
    with apply_reduction(model, reducing(rates)) as handle:
        found = model(**inputs).logits[:, -3:]
        report = handle.report()
        generated = generate(model, inputs, 4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(generated[1], logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(generated[0], text)
    classes = towers.CLASSES[kind]
    assert [(layer.layer, layer.tokens, layer.vision_tokens) for layer in report.tower] == [
        (index, count + classes, count) for index, count in enumerate((36, 27, 18, 18), start=1)
    ]
    assert report.layers[0].vision_tokens == (18, 36, 18)
    assert report.layers[2].vision_tokens == (9, 18, 9)


@pytest.mark.slow
def test_dropping_in_the_tower_of_paligemma(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prompt sees itself in both directions, and its images follow each other without text between them."""
    pruning(monkeypatch, "siglip")
    builder = BUILDERS["paligemma"]
    inputs, eager, model = builder.batch(builder.samples("varying")), builder.build("eager"), builder.build("sdpa")
    rates, tower = (0.5, 0.5, 0.25, 0.25, 0.25, 0.25), (1.0, 0.75, 0.5)
    with towers.MaskedTower(eager, "siglip", tower) as reference:
        expected = masked_generate(eager, rates, inputs, 4, entry=survivors(reference, inputs))
    with apply_reduction(model, reducing(rates, tower)):
        found = generate(model, inputs, 4)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)
    assert torch.equal(found[0], expected[0])


def test_tower_entry_and_decoder_compose(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the class token attends to most of what the tower left, then what the text does."""
    pruning(monkeypatch, "clip")
    inputs, eager = batch("padded"), model_of("clip", "eager")
    rates = (0.25, 0.25, 0.125, 0.125, 0.125, 0.125)
    with towers.MaskedTower(eager, "clip", TOWER) as reference:
        left_by_tower = survivors(reference, inputs)

        def entry(hidden: torch.Tensor, sample: int, slots: list[int]) -> list[int]:
            received = reference.found[2][sample][:, 0, 1:].mean(0)
            score = dict(zip(slots, received.tolist(), strict=True))
            return sorted(left_by_tower(hidden, sample, slots), key=lambda slot: -score[slot])[:9]

        expected = masked_forward(eager, rates, inputs, 3, entry=entry)
    with apply_reduction(model_of(), reducing(rates, entry="fastervlm")):
        found = model_of()(**inputs).logits[:, -3:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_samples_are_the_same_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pruning(monkeypatch, "clip")
    model, inputs = model_of(), batch("mixed")
    with apply_reduction(model, reducing((0.25,), entry="fastervlm")):
        together = model(**inputs).logits[:, -1]
        for row in range(len(together)):
            alone = model(**single_of(inputs, row)).logits[:, -1]
            torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-4)


def test_all_patches_may_go_where_a_class_token_stays() -> None:
    reduction = Reduction((0.0,) * LAYERS, RULE, None, VisionReduction((1.0, 0.5, 0.0, 0.0), make_rule("tome")))
    with apply_reduction(model_of(), reduction) as handle:
        assert model_of()(**batch("varying")).logits.isfinite().all()
        assert handle.report().layers[0].vision_tokens == (0, 0, 0)
    with pytest.raises(UnsupportedError, match="must be left a patch"):  # attention over nothing
        apply_reduction(model_of("siglip"), reduction)


@pytest.mark.parametrize("entry", [None, "fastervlm"])
def test_a_rate_that_leaves_every_patch_of_an_image_drops_nothing_of_several(entry: str | None) -> None:
    rate = 1.0 - 0.4 / TOKENS  # of one image all, of two rounded together one less
    inputs, model = batch("varying"), model_of()
    expected = model(**inputs).logits
    with apply_reduction(model, reducing((rate,), (1.0, rate, rate, rate), entry)) as handle:
        assert torch.equal(model(**inputs).logits, expected)
        assert {layer.vision_tokens for layer in handle.report().layers} == {handle.report().vision_tokens}


def test_images_are_rounded_one_by_one() -> None:
    """0.4 of 36 patches are 14, of two images 28 and not 29; a lower rate is one of the 72."""
    with apply_reduction(model_of(), reducing((0.4, 0.3), (1.0, 0.4, 0.4, 0.4))) as handle:
        model_of()(**batch("varying"))
        assert [layer.vision_tokens for layer in handle.report().layers[:2]] == [(14, 28, 14), (11, 22, 11)]


@pytest.mark.parametrize("also_tower", quick_first([True, False]))
def test_flash_attention(also_tower: bool) -> None:
    """The tower's implementation may be another than the decoder's; kernels take no bias for proportional attention."""
    inputs, reduction = batch("varying"), reducing((0.25,), TOWER, "visionzip")
    with apply_reduction(model_of(), reduction):
        expected = model_of()(**inputs).logits[:, -1]
    with emulated_kernels():
        model = use_flash(towers.build())
        if also_tower:
            model.base_model.vision_tower.config._attn_implementation_internal = "flash_attention_2"
            proportional = Reduction((0.5,) * LAYERS, RULE, None, VisionReduction(TOWER, make_rule("tome")))
            with pytest.raises(UnsupportedError, match="takes a bias"):
                apply_reduction(model, proportional)
        with apply_reduction(model, reduction):
            found = model(**inputs).logits[:, -1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", quick_first(["tome", "mustdrop"]))
def test_merging_is_the_same_in_every_attention(rule: str) -> None:
    """Proportional attention is a mask that both implementations take."""
    inputs, found = batch("varying"), []
    reduction = Reduction((0.5,) * LAYERS, RULE, None, VisionReduction(TOWER, make_rule(rule)))
    for attention in ("sdpa", "eager"):
        with apply_reduction(model_of("clip", attention), reduction):
            found.append(model_of("clip", attention)(**inputs).logits[:, -3:])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_a_token_of_n_patches_is_attended_to_like_n(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal tokens in one, whose size is 2, leave the attention of all others as it was."""

    def first_of_pair(tokens: Tokens, _rule: object) -> torch.Tensor:
        return (tokens.position % 2 == 0).float().expand_as(tokens.position)

    def into_neighbour(tokens: Tokens, kept: torch.Tensor, _rule: object) -> torch.Tensor:
        S = tokens.hidden.shape[1]
        weights = torch.eye(S).expand(len(tokens.hidden), S, S).clone()
        goes = (tokens.vision & ~kept).nonzero()
        weights[goes[:, 0], goes[:, 1], goes[:, 1] - 1] = 0.5
        weights[goes[:, 0], goes[:, 1] - 1, goes[:, 1] - 1] = 0.5
        return weights

    reducer = Reducer(EVIT, Reads(sizes=True), first_of_pair, into_neighbour, lambda _t, _k, weights, _r: weights)
    towers.use_reducer(monkeypatch, "vision", reducer)
    model, inputs = model_of(), batch("single")
    layers = model.base_model.vision_tower.encoder.layers

    def double(_module: Any, args: tuple[Any, ...]) -> Any:
        hidden = args[0].clone()
        hidden[:, 2::2] = hidden[:, 1::2]
        return (hidden, *args[1:])

    hook = layers[1].register_forward_pre_hook(double)
    try:
        expected = torch.stack(model.base_model.get_image_features(inputs["pixel_values"]).pooler_output)
        vision = VisionReduction((1.0, 0.5, 0.5, 0.5), EVIT)
        compute = lambda: model.base_model.get_image_features(inputs["pixel_values"])  # noqa: E731
        output, views = compute_features(model, compute, vision)
    finally:
        hook.remove()
    assert views is not None
    assert views.kept is not None
    found = torch.stack(output.pooler_output)
    assert found.isnan().all(-1).equal(~views.kept)
    torch.testing.assert_close(found[:, ::2], expected[:, ::2], rtol=1e-4, atol=1e-4)
    assert views.sizes is not None
    assert views.sizes[:, ::2].eq(2).all()


# -- what entry rules read


@pytest.mark.parametrize("read_of", quick_first([("clip", "class"), ("clip", "every"), ("siglip", "vision")]))
def test_an_entry_rule_reads_what_the_tower_computes(read_of: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (kind, rows), read = read_of, list[Tokens]()

    def watching(tokens: Tokens, _rule: object) -> torch.Tensor:
        read.append(tokens)
        return torch.zeros(tokens.vision.shape)

    reads = Reads(rows=rows, matrix=True, keys=True, tower_layer=1)
    towers.use_reducer(monkeypatch, "entry", Reducer(make_rule("random"), reads, watching))
    inputs, eager, classes = batch("varying"), model_of(kind, "eager"), towers.CLASSES[kind]
    with towers.seen_attention(eager) as found:
        keys: list[torch.Tensor] = []
        attention = eager.base_model.vision_tower.encoder.layers[1].self_attn
        hook = attention.k_proj.register_forward_hook(lambda _m, _a, output: keys.append(output))
        eager(**inputs)
        hook.remove()
    model = model_of(kind)
    with apply_reduction(model, reducing((0.5,), None, "random")):
        model(**inputs)
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    probabilities = found[1].mean(1)[:, :, classes:]  # of each image, over its patches
    rows_of = {"class": probabilities[:, :1], "every": probabilities, "vision": probabilities[:, classes:]}[rows]
    images = [[0], [1, 2], [3]]
    assert len(read) == 2  # forward, and the prefill of generate
    for tokens in read:
        assert tokens.attention is not None
        assert tokens.keys is not None
        assert tokens.rows is not None
        for sample, numbers in enumerate(images):
            slots = tokens.vision[sample].nonzero()[:, 0]
            chosen = rows_of[numbers]
            torch.testing.assert_close(tokens.attention[sample, slots], chosen.mean(1).flatten(), rtol=1e-4, atol=1e-5)
            own = torch.cat([keys[0][number, classes:] for number in numbers])
            torch.testing.assert_close(tokens.keys[sample, slots].flatten(1), own, rtol=1e-4, atol=1e-4)
            values = tokens.rows.values[sample][:, slots][tokens.rows.weights[sample] > 0]
            block = torch.block_diag(*chosen)
            torch.testing.assert_close(values, block, rtol=1e-4, atol=1e-5)
            assert tokens.rows.weights[sample].sum() == pytest.approx(1.0)
            if rows == "vision":
                assert torch.equal(tokens.rows.slots[sample][: len(slots)], slots)
        assert not tokens.attention[~tokens.vision].any()


@pytest.mark.slow
def test_beams_read_what_their_sample_reads() -> None:
    model, inputs = model_of(), batch("varying")
    for reduction in (reducing((0.25,), None, "fastervlm"), reducing((0.25,), TOWER, "fastervlm")):
        with apply_reduction(model, reduction):
            single = model.generate(**inputs, max_new_tokens=3, do_sample=False)
            beams = model.generate(
                **inputs, max_new_tokens=3, do_sample=False, num_beams=2, num_return_sequences=2, length_penalty=0.0
            )
            first = model.generate(**inputs, max_new_tokens=1, do_sample=False, num_beams=2)
        assert torch.equal(first[:, -1], single[:, -3])
        assert beams.shape[0] == 2 * len(single)


@pytest.mark.parametrize("entry", quick_first(["visionzip", "fastervlm"]))
@pytest.mark.parametrize("tower", [None, TOWER])
def test_features_computed_before_give_the_same_bits(entry: str, tower: Any) -> None:
    model, inputs = model_of(), batch("padded")
    reduction = reducing((0.25,), tower, entry)
    language = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    wanted = views_wanted(model, reduction.entry_rule)
    compute = lambda: model.base_model.get_image_features(inputs["pixel_values"], return_dict=True)  # noqa: E731
    output, views = compute_features(model, compute, reduction.vision, wanted)
    with apply_reduction(model, reduction) as handle:
        direct = model(**inputs).logits
        with handle.tower_views(views):
            stored = model(**language, mm_encoder_outputs={"image": output}).logits
            tokens = model.generate(**language, mm_encoder_outputs={"image": output}, max_new_tokens=3, do_sample=False)
        assert torch.equal(stored, direct)
        assert torch.equal(tokens, model.generate(**inputs, max_new_tokens=3, do_sample=False))
        with pytest.raises(UnsupportedError, match="must come with what the rules read of the tower"):
            model(**language, mm_encoder_outputs={"image": output})
        with pytest.raises(UnsupportedError, match="under no schedule"):
            compute_features(model, compute, reduction.vision, wanted)


# -- what stays as it was


def test_a_whole_tower_is_not_touched() -> None:
    model, inputs = model_of(), batch("varying")
    expected = model(**inputs).logits
    with apply_reduction(model, reducing((1.0,), (1.0,) * 4)) as handle:
        assert torch.equal(model(**inputs).logits, expected)
        assert handle.report().tower == ()


def test_removal_leaves_the_model_as_it_was() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, inputs = model_of(), batch("varying")

    def state() -> list[int]:
        return [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]

    expected, before = model(**inputs).logits, state()
    handle = apply_reduction(model, reducing((0.25,), TOWER, "visionzip"))
    assert not torch.equal(model(**inputs).logits[:, -1], expected[:, -1])
    handle.remove()
    assert state() == before
    assert "sdpa" not in ALL_ATTENTION_FUNCTIONS._local_mapping
    assert torch.equal(model(**inputs).logits, expected)


def test_an_image_of_a_later_turn_is_kept_whole() -> None:
    model, inputs = model_of(), batch("equal")
    with apply_reduction(model, reducing((0.5,))):
        cache = model(**inputs, use_cache=True).past_key_values
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(inputs["attention_mask"])], dim=1)
        later = model(
            input_ids=inputs["input_ids"],
            attention_mask=mask,
            pixel_values=inputs["pixel_values"],
            past_key_values=cache,
        )
        assert later.logits.isfinite().all()
        assert later.logits.shape[1] == inputs["input_ids"].shape[1]


def test_a_failed_pass_leaves_nothing() -> None:
    model, inputs = model_of(), batch("equal")
    with apply_reduction(model, reducing((0.25,), TOWER, "fastervlm")) as handle:
        expected = model(**inputs).logits
        with pytest.raises(ValueError, match="do not match"):
            model(**{**inputs, "pixel_values": inputs["pixel_values"][:1]})
        assert handle._tower is not None
        assert handle._tower.views is None
        assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.slow
def test_threads_do_not_mix() -> None:
    model = towers.build()
    with apply_reduction(model, reducing((0.25,), TOWER, "fastervlm")):
        expected = {name: model(**batch(name)).logits for name in ("padded", "varying", "single")}

        def job(name: str) -> Any:
            def run() -> None:
                assert torch.equal(model(**batch(name)).logits, expected[name])

            return run

        assert not together(*map(job, expected))


@pytest.mark.parametrize("rule", quick_first(["tome", "evit"]))
def test_nothing_is_asked_of_the_device(rule: str) -> None:
    """Counts are the host's: a reduced layer more makes nobody wait."""
    model, inputs, found = model_of(), batch("varying"), []
    for rates in ((1.0, 1.0, 0.5, 0.5), (1.0, 0.75, 0.5, 0.5)):
        vision = VisionReduction(rates, make_rule(rule))
        with apply_reduction(model, Reduction((0.25,) * LAYERS, RULE, make_rule("fastervlm"), vision)):
            model(**inputs)
            with counted() as counts:
                model(**inputs)
        found.append({name: count for name, count in counts.items() if name != "tensor"})  # to the device
    assert found[0] == found[1]
    assert (found[0]["cpu"], found[0].get("tolist")) == (2, None)  # input ids and padding
