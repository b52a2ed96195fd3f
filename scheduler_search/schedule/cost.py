"""Arithmetic of what a schedule costs: FLOPs of the prefill, and bytes of the KV cache.

Knows: the shapes of a vision tower, a projector and a decoder, and how many tokens each layer sees. Does not know:
model classes or configurations (the runtime derives a ModelShape from one), milliseconds, or the cost of ranking.

FLOPs are two per multiply-add of a matrix product, and only matrix products count. Attention is counted full, n x n for
n tokens, causal or not: so ``torch.utils.flop_counter`` counts the kernels of torch, and these functions agree with it
within 1 %. Keep counts come from ``counts.keep_count``, the one rounding rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from scheduler_search.errors import ScheduleError
from scheduler_search.schedule.checks import check_index
from scheduler_search.schedule.counts import keep_count, keep_counts

Logits = Literal["last", "all"]


@dataclass(frozen=True)
class DecoderShape:
    """Widths of the decoder. ``gated`` is a gated MLP (three matrices) instead of a plain one (two)."""

    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_dimension: int
    intermediate: int
    gated: bool = True

    @property
    def linear_flops(self) -> int:
        """FLOPs of one layer's projections and MLP, per token."""
        attention = 2 * self.heads + 2 * self.key_value_heads
        matrices = 3 if self.gated else 2
        return 2 * self.hidden * (attention * self.head_dimension + matrices * self.intermediate)

    @property
    def attention_flops(self) -> int:
        """FLOPs of one layer's QK^T and PV, per pair of tokens."""
        return 4 * self.heads * self.head_dimension

    @property
    def cache_values(self) -> int:
        """Key and value numbers that one layer caches, per token."""
        return 2 * self.key_value_heads * self.head_dimension


@dataclass(frozen=True)
class VisionShape:
    """Widths of a vision tower and of its patch embedding, for one image (or one tile).

    Args:
        layers: layers that are executed (also those behind ``vision_feature_layer``: they run and are thrown away).
        patches: patch tokens of one image; of a native tower any number that belongs to ``tokens_per_image``.
        class_tokens: tokens beside the patches (CLIP has one class token, SigLIP none).
        patch_values: numbers in one patch, channels x height x width.
        tokens_per_image: vision tokens that the decoder gets for one image, after any merging in the projector.
        gated: whether the MLP is gated.
        pooling_head: whether an attention pooling head with its MLP runs on the result (SigLIP; LLaVA throws it away).
        native: whether the tower takes images of any size, so that the patches follow from the vision tokens (Pixtral).
            False is an image, or a tile, of one size, and a sample has as many as its vision tokens need.
        windows: patches in one attention window, for each layer; None where a layer attends to the whole image (all
            layers, if empty).
        used_layers: how many layers there are in front of the projector; a reduction cannot begin behind them. None for
            all.
    """

    layers: int
    hidden: int
    heads: int
    intermediate: int
    patches: int
    patch_values: int
    tokens_per_image: int
    class_tokens: int = 1
    gated: bool = False
    pooling_head: bool = False
    native: bool = False
    windows: tuple[int | None, ...] = ()
    used_layers: int | None = None

    @property
    def linear_flops(self) -> int:
        """FLOPs of one layer's projections and MLP, per token."""
        matrices = 3 if self.gated else 2
        return 2 * self.hidden * (4 * self.hidden + matrices * self.intermediate)

    def sample_flops(self, vision_tokens: int, keep_rates: Sequence[float] | None = None) -> float:
        """FLOPs of all images of a sample with N = ``vision_tokens``.

        A native tower is counted over one image: the sizes of several are not in their sum.
        """
        images = vision_tokens / self.tokens_per_image
        if self.native:
            return float(self._flops(round(images * self.patches), keep_rates))
        return images * self.image_flops(keep_rates)

    def image_flops(self, keep_rates: Sequence[float] | None = None) -> int:
        """FLOPs of one image; ``keep_rates`` are those of a reduction inside the tower (class tokens always stay)."""
        return self._flops(self.patches, keep_rates)

    def _flops(self, patches: int, keep_rates: Sequence[float] | None) -> int:
        counts = [patches] * self.layers if keep_rates is None else list(keep_counts(keep_rates, patches))
        tokens = [count + self.class_tokens for count in counts]
        embedding = 2 * patches * self.patch_values * self.hidden
        windows = self.windows or (None,) * self.layers
        pairs = sum(n * min(n, window or n) for n, window in zip(tokens, windows, strict=True))
        layers = self.linear_flops * sum(tokens) + 4 * self.hidden * pairs
        return embedding + layers + self._pooling_flops(tokens[-1] if tokens else patches)

    def _pooling_flops(self, tokens: int) -> int:
        if not self.pooling_head:
            return 0
        probe = 2 * self.hidden * (2 * self.hidden + 2 * self.intermediate)
        return probe + (4 * self.hidden * self.hidden + 4 * self.hidden) * tokens


@dataclass(frozen=True)
class ModelShape:
    """A multimodal LLM as the arithmetic sees it.

    Args:
        vision: the tower, or None for features that come from elsewhere.
        projector: widths of the linear layers between tower and decoder, e.g. (1024, 4096, 4096) for LLaVA-1.5-7B; they
            run once for each of the N vision tokens.
        vocabulary: rows of the lm head.
        projectors: how many of them run side by side (DeepStack has one more for each layer that gets features).
    """

    decoder: DecoderShape
    vision: VisionShape | None
    projector: tuple[int, ...]
    vocabulary: int
    projectors: int = 1

    def logit_flops(self, positions: int) -> int:
        """FLOPs of the lm head over ``positions`` tokens."""
        return 2 * self.decoder.hidden * self.vocabulary * positions

    def vision_flops(self, vision_tokens: int, keep_rates: Sequence[float] | None = None) -> float:
        """FLOPs of tower and projector for one sample with N = ``vision_tokens``.

        The number of images is N over the tokens per image; of an image that was cut to fewer tokens the share counts.
        A reduction inside the tower leaves its last count to the projector.
        """
        projected = vision_tokens if keep_rates is None else keep_count(keep_rates[-1], vision_tokens)
        widths = pairwise(self.projector)
        flops = float(projected * self.projectors * sum(2 * wide * narrow for wide, narrow in widths))
        if self.vision is not None and vision_tokens:
            flops += self.vision.sample_flops(vision_tokens, keep_rates)
        return flops


class SplitCost:
    """Mean prefill FLOPs over the samples of one split, as a function of the keep rates: the inside of root finding.

    Everything that no rate changes is computed once, and equal samples are one group.

    Args:
        shape: the model.
        vision_tokens: N of every sample.
        text_tokens: prompt tokens that are not vision tokens, of every sample.

    Raises:
        ScheduleError: no samples, or not one text length for each.
    """

    def __init__(self, shape: ModelShape, vision_tokens: Sequence[int], text_tokens: Sequence[int]) -> None:
        import numpy  # 80 ms that an import of the package does not owe

        if len(vision_tokens) != len(text_tokens) or not vision_tokens:
            actual = f"{len(vision_tokens)} and {len(text_tokens)}"
            raise ScheduleError("a split needs samples, with vision and text tokens for each", actual=actual)
        # Sorted, so that the order of the samples leaves no trace in the roundings of the sum.
        groups = dict(sorted(Counter(zip(vision_tokens, text_tokens, strict=True)).items()))
        self._shape = shape
        self._vision = numpy.array([[float(n)] for n, _ in groups])
        self._text = numpy.array([[float(t)] for _, t in groups])
        self._weights = numpy.array(list(groups.values())) / len(vision_tokens)
        self._sizes = [n for n, _ in groups]
        self._outside: dict[tuple[float, ...], float] = {}

    def __call__(
        self, keep_rates: Sequence[float], tower_keep_rates: Sequence[float] = (), image_rate: float = 1.0
    ) -> float:
        """Mean FLOPs under ``keep_rates``, one rate per decoder layer, and those of the tower's layers; () for all.

        Args:
            image_rate: see ``prefill_flops``.
        """
        import numpy  # see __init__

        decoder = self._shape.decoder
        _check_length(decoder, keep_rates)
        # The same rounding as counts.keep_count, for all samples and layers at once.
        kept = numpy.clip(numpy.floor(numpy.asarray(keep_rates) * self._vision + 0.5), 0.0, self._vision)
        tokens = kept + self._text
        linear = decoder.linear_flops * tokens.sum(axis=1)
        attention = decoder.attention_flops * (tokens * tokens).sum(axis=1)
        outside = self._outside_of((image_rate, *tower_keep_rates))
        return outside + float((linear + attention) @ self._weights)

    def _outside_of(self, rates: tuple[float, ...]) -> float:
        """Mean FLOPs in front of and behind the decoder; many schedules share rates of images and tower."""
        import numpy  # see __init__

        if rates not in self._outside:
            image_rate, *tower = rates
            sizes = {n: keep_count(image_rate, n) for n in set(self._sizes)}
            known = {n: self._shape.vision_flops(size, tower or None) for n, size in sizes.items()}
            vision = numpy.array([known[n] for n in self._sizes])
            self._outside[rates] = float(vision @ self._weights) + self._shape.logit_flops(1)
        return self._outside[rates]


def prefill_flops(
    shape: ModelShape,
    keep_rates: Sequence[float],
    vision_tokens: int,
    text_tokens: int,
    *,
    tower_keep_rates: Sequence[float] | None = None,
    image_rate: float = 1.0,
    logits: Logits = "last",
) -> float:
    """FLOPs of one sample's prefill: tower, projector, decoder layers and lm head.

    Args:
        keep_rates: share of the N vision tokens at the input of each of the L decoder layers.
        vision_tokens: N, counted before any reduction.
        text_tokens: prompt tokens that are not vision tokens.
        tower_keep_rates: rates of a reduction inside the tower, one per tower layer.
        image_rate: share of its vision tokens to which every image is made smaller in front of the tower. Counted are
            the patches of ``keep_count(image_rate, N)`` vision tokens; the grids of the smaller images, which have
            whole sides and at least as many tokens, cost some more.
        logits: whether the lm head runs over the last position (generation) or over all that are left.

    Raises:
        ScheduleError: not one rate per layer, or a negative number of tokens.
    """
    _check_tokens(shape, keep_rates, vision_tokens, text_tokens)
    tokens = [count + text_tokens for count in keep_counts(keep_rates, vision_tokens)]
    layers = shape.decoder.linear_flops * sum(tokens) + shape.decoder.attention_flops * sum(n * n for n in tokens)
    head = shape.logit_flops(tokens[-1] if logits == "all" else 1)
    return shape.vision_flops(keep_count(image_rate, vision_tokens), tower_keep_rates) + layers + head


def mean_prefill_flops(
    shape: ModelShape,
    keep_rates: Sequence[float],
    vision_tokens: Sequence[int],
    text_tokens: Sequence[int],
    tower_keep_rates: Sequence[float] = (),
    image_rate: float = 1.0,
) -> float:
    """Mean ``prefill_flops`` over the samples of a split, with the lm head over the last position."""
    return SplitCost(shape, vision_tokens, text_tokens)(keep_rates, tower_keep_rates, image_rate)


def textbook_flops(decoder: DecoderShape, keep_rates: Sequence[float], vision_tokens: int, text_tokens: int) -> float:
    """Sum of 4nd^2 + 2n^2d + 2ndm over the layers: the approximation of seed 003, eq. 4 (from FastV).

    It counts a multiply-add as one operation, all heads as key-value heads, a plain MLP, and neither tower nor lm head:
    to compare with papers, never with ``prefill_flops``.
    """
    d, m = decoder.hidden, decoder.intermediate
    tokens = [count + text_tokens for count in keep_counts(keep_rates, vision_tokens)]
    return float(sum(4 * n * d * d + 2 * n * n * d + 2 * n * d * m for n in tokens))


def kv_cache_bytes(
    shape: ModelShape,
    keep_rates: Sequence[float],
    vision_tokens: int,
    text_tokens: int,
    bytes_per_value: int = 2,
) -> int:
    """Bytes of one sample's KV cache after the prefill, vision and text tokens of all layers."""
    _check_tokens(shape, keep_rates, vision_tokens, text_tokens)
    tokens = sum(keep_counts(keep_rates, vision_tokens)) + len(keep_rates) * text_tokens
    return tokens * shape.decoder.cache_values * bytes_per_value


def kv_cache_ratio(keep_rates: Sequence[float], vision_tokens: int, text_tokens: int) -> float:
    """KV cache of *all* tokens against that of the unreduced prompt: what the device's memory sees."""
    unreduced = len(keep_rates) * (vision_tokens + text_tokens)
    kept = sum(keep_counts(keep_rates, vision_tokens)) + len(keep_rates) * text_tokens
    return kept / unreduced if unreduced else 1.0


def vision_kv_cache_ratio(keep_rates: Sequence[float], vision_tokens: int) -> float:
    """KV cache of the *vision* tokens against that of all of them: the "memory cost" of seed 003, section 4.1."""
    return kv_cache_ratio(keep_rates, vision_tokens, 0)


def _check_tokens(shape: ModelShape, keep_rates: Sequence[float], vision_tokens: int, text_tokens: int) -> None:
    check_index(vision_tokens, "vision tokens", 0)
    check_index(text_tokens, "text tokens", 0)
    _check_length(shape.decoder, keep_rates)


def _check_length(decoder: DecoderShape, keep_rates: Sequence[float]) -> None:
    if len(keep_rates) != decoder.layers:
        rule = f"keep rates must be given for all {decoder.layers} decoder layers"
        raise ScheduleError(rule, actual=f"{len(keep_rates)} rates")
