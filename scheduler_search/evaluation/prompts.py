"""From a question to the text that the processor tokenises.

Knows: the chat template of the processor, a template of the study file, and where the image placeholder goes. Does not
know: images, tensors, answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scheduler_search.errors import DataError, ModelError

AUTO = "auto"
_QUESTION = "{question}"


@dataclass(frozen=True)
class Prompt:
    """How a question is asked.

    Args:
        template: text with ``{question}``; None where the processor's chat template is used.
        placeholder: the processor's mark for one image.
        processor: the processor with its tokenizer.
    """

    template: str | None
    placeholder: str
    processor: Any

    @property
    def identity(self) -> str:
        """The text that decides what the model reads: the template, or the chat template itself."""
        return self.template if self.template is not None else f"chat template: {self.processor.chat_template}"

    def text(self, question: str, place: str) -> str:
        """The prompt of one question, with one image placeholder.

        Raises:
            DataError: the question contains the image placeholder.
        """
        if self.placeholder in question:
            raise DataError(
                f"a question must not contain the image placeholder {self.placeholder}",
                place=place,
                remedy="remove it; the prompt adds it",
            )
        if self.template is not None:
            return self.template.replace(_QUESTION, question)
        content = [{"type": "image"}, {"type": "text", "text": question}]
        conversation = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False))

    def adds_special_tokens(self, text: str) -> bool:
        """Whether the tokenizer still has to add its special tokens: not where the template wrote the BOS itself."""
        bos = self.processor.tokenizer.bos_token
        return bos is None or not text.startswith(bos)


def make_prompt(setting: str, processor: Any, place: str) -> Prompt:
    """The prompt of ``[model] prompt``: "auto", or a template with ``{question}``.

    "auto" is the chat template; for a processor without one it is the image, a line break and the question. A template
    without the image placeholder gets it in front.

    Raises:
        ModelError: the processor has no image placeholder, or the prompt has more than one.
    """
    placeholder = getattr(processor, "image_token", None)
    if not isinstance(placeholder, str):
        raise ModelError("the processor must have an image placeholder", actual=type(processor).__name__, place=place)
    if setting == AUTO and getattr(processor, "chat_template", None):
        prompt = Prompt(None, placeholder, processor)
    else:
        prompt = Prompt(
            _with_image(_QUESTION if setting == AUTO else setting, placeholder, processor), placeholder, processor
        )
    _check_one_image(prompt, place)
    return prompt


def _with_image(template: str, placeholder: str, processor: Any) -> str:
    """The template with the image in front of its text, behind its BOS."""
    if placeholder in template:
        return template
    bos = processor.tokenizer.bos_token or ""
    start = bos if template.startswith(bos) else ""
    return f"{start}{placeholder}\n{template.removeprefix(start)}"


def _check_one_image(prompt: Prompt, place: str) -> None:
    text = prompt.text("question", place)
    if text.count(prompt.placeholder) != 1 or "question" not in text:
        raise ModelError(
            f"a prompt must have one image placeholder {prompt.placeholder} and the question",
            actual=repr(text),
            place=place,
            remedy="set [model] prompt",
        )
