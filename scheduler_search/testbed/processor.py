"""The processor of the tiny LLaVA: word-level tokenizer, CLIP image processor, chat template.

Knows: how text and images become model inputs. Does not know: weights, training, scenes.
"""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from scheduler_search.testbed.scenes import IMAGE_PIXELS
from scheduler_search.testbed.vocabulary import BOS, EOS, IMAGE, PAD, UNKNOWN, WORD_IDS

PATCH_PIXELS = 8
PIXEL_MEAN = 0.5
PIXEL_DEVIATION = 0.5

# Renders a user's turn as "<image> color left of circle". It writes no <s>: the tokenizer adds the one there is.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if not loop.first %} {% endif -%}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if not loop.first %} {% endif -%}
{%- if part['type'] == 'image' -%}<image>{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' %} </s>{% endif -%}
{%- endfor -%}"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Words split at white space; ``<s>`` in front; padding on the left, as generation needs it."""
    tokenizer = Tokenizer(models.WordLevel(dict(WORD_IDS), unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, WORD_IDS[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="left",
        extra_special_tokens={"image_token": IMAGE},
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> LlavaProcessor:
    """The whole processor; one image becomes 64 vision tokens."""
    images = CLIPImageProcessorPil(
        size={"height": IMAGE_PIXELS, "width": IMAGE_PIXELS},
        do_resize=True,
        do_center_crop=False,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_DEVIATION] * 3,
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH_PIXELS,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
