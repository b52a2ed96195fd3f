"""Random ranking: the baseline that every rule must beat (seed 001).

A sample's ranking depends on the rule's seed and on the sample's own unpadded input ids, nothing else: it is the same
alone and in a batch, on every device, and at every layer, so that what is kept late was also kept early.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import torch

from scheduler_search.reducers.tokens import Prompt, Tokens
from scheduler_search.rule import Rule


def at_random(tokens: Tokens, rule: Rule) -> torch.Tensor:
    """Redundancy [B, S]: the place of each token in its sample's ranking."""
    prompt, seed = tokens.prompt, rule.whole("seed")
    ranks = prompt.once((at_random, rule), lambda: torch.from_numpy(_ranks(prompt, seed)).to(tokens.hidden.device))
    return ranks.to(tokens.hidden.device).gather(1, tokens.position)


def _ranks(prompt: Prompt, seed: int) -> npt.NDArray[np.float32]:
    ranks = np.zeros(prompt.vision.shape, dtype=np.float32)
    for sample in range(prompt.samples):
        ids = prompt.input_ids[sample][prompt.asking[sample]]
        ranks[sample, prompt.vision[sample]] = random_ranking(seed, ids, prompt.vision_tokens[sample])
    return ranks


def random_ranking(seed: int, input_ids: npt.NDArray[np.int64], tokens: int) -> npt.NDArray[np.int64]:
    """A permutation of ``range(tokens)`` keyed by ``seed`` and the unpadded ``input_ids`` [S].

    Raw Philox output and a stable sort: unlike ``Generator.permutation``, both are the same in every NumPy release.
    """
    content = str(seed).encode() + b":" + np.ascontiguousarray(input_ids, dtype="<i8").tobytes()
    key = int.from_bytes(blake2b(content, digest_size=16).digest(), "little")
    order = np.argsort(np.random.Philox(key=key).random_raw(tokens), kind="stable")
    ranking = np.empty(tokens, dtype=np.int64)
    ranking[order] = np.arange(tokens)
    return ranking
