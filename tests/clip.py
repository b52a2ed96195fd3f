"""A tiny CLIP model with random weights and a tokenizer of the testbed's words, for a vision tower that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, PreTrainedTokenizerFast

from scheduler_search.testbed.vocabulary import BOS, EOS, PAD, UNKNOWN, WORD_IDS

CONTEXT, SPACE = 9, 20


def build_clip(tower: Any, seed: int = 0, **vision: Any) -> Any:
    """The CLIP model whose tower this is: configuration and weights; ``vision`` changes the configuration instead."""
    torch.manual_seed(seed)
    special = {"pad_token_id": WORD_IDS[PAD], "bos_token_id": WORD_IDS[BOS], "eos_token_id": WORD_IDS[EOS]}
    text = CLIPTextConfig(
        vocab_size=len(WORD_IDS),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        projection_dim=SPACE,
        **special,
    )
    widths = {**tower.config.to_dict(), "projection_dim": SPACE, **vision}
    clip: Any = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=widths, projection_dim=SPACE)).eval()
    if not vision:
        clip.vision_model.load_state_dict(tower.state_dict())
    with torch.no_grad():
        for name, weight in clip.named_parameters():
            if weight.ndim >= 2 and "vision_model" not in name:
                weight.mul_(4.0)
    return clip.requires_grad_(False)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Words between start and end token, as CLIP has them."""
    tokenizer = Tokenizer(models.WordLevel(dict(WORD_IDS), unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(token, WORD_IDS[token]) for token in (BOS, EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="left",  # which would shift positions: the encoder must not let it
    )


def save_clip(folder: Path, tower: Any, seed: int = 0, **vision: Any) -> Path:
    """Model and tokenizer in a directory, as ``save_pretrained`` writes them."""
    build_clip(tower, seed, **vision).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder
