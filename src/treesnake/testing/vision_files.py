"""Folders of tiny vision-language models, with a tokenizer, a chat template and a processor."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import PROCESSOR_MAPPING, PreTrainedTokenizerFast

from treesnake.loading.processors import for_images
from treesnake.testing.tokenizers import END, TURN, byte_level
from treesnake.testing.vision import tiny_vision_model

TEMPLATE = (
    "{% for message in messages %}" + TURN + "{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}MARK{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}" + END + "\n{% endfor %}"
    "{% if add_generation_prompt %}" + TURN + "assistant\n{% endif %}"
)
"""Reads parts only, as the templates of LLaVA do; MARK becomes the processor's."""

SQUARE = {"height": 16, "width": 16}


@dataclass(frozen=True)
class ProcessorParts:
    """What a tiny processor is made of.

    Attributes:
        image_processor: the name of its class in transformers, for Pillow alone.
        sizes: arguments of that.
        processor: arguments of the processor.
        mark: what the chat template writes for an image.
        placeholder: what stands for a feature of an image.
        special: further special tokens, by the names that the processor asks the tokenizer for.
    """

    image_processor: str
    sizes: Mapping[str, Any]
    processor: Mapping[str, Any]
    mark: str = "<image>"
    placeholder: str = "<image>"
    special: Mapping[str, str] | Sequence[str] = ()


_CLIP: dict[str, Any] = {"size": {"shortest_edge": 16}, "crop_size": SQUARE}
_LLAVA: dict[str, Any] = {
    "patch_size": 4,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}
_QWEN = (
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|image_pad|>",
    ("<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
)

PROCESSORS: Mapping[str, ProcessorParts] = {
    "gemma3": ProcessorParts(
        "Gemma3ImageProcessorPil",
        {"size": SQUARE},
        {"image_seq_length": 4},
        "<start_of_image>",
        "<image_soft_token>",
        {
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    ),
    "idefics3": ProcessorParts(
        "Idefics3ImageProcessorPil",
        {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}},
        {"image_seq_len": 4},
        special=("<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    ),
    "llava": ProcessorParts("CLIPImageProcessorPil", _CLIP, _LLAVA),
    "llava_next": ProcessorParts(
        "LlavaNextImageProcessorPil",
        {**_CLIP, "image_grid_pinpoints": [[16, 32], [32, 16], [32, 32]]},
        _LLAVA,
    ),
    "llava_onevision": ProcessorParts(
        "LlavaOnevisionImageProcessorPil",
        {"size": SQUARE, "image_grid_pinpoints": [[16, 32], [32, 16], [32, 32]]},
        {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        special=("<video>",),
    ),
    "qwen2_5_vl": ProcessorParts(
        "Qwen2VLImageProcessorPil",
        {"patch_size": 4, "merge_size": 2, "min_pixels": 64, "max_pixels": 1024},
        {},
        *_QWEN,
    ),
}


def save_vision_model(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Saves a tiny model with all that it takes to talk about images, and returns the folder."""
    parts = PROCESSORS[family]
    tokenizer = _tokenizer(parts)
    token = tokenizer.convert_tokens_to_ids(parts.placeholder)
    assert isinstance(token, int)
    model = tiny_vision_model(family, seed=seed, vocab_size=len(tokenizer), image_token=token)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(END)
    model.save_pretrained(folder)
    make: Callable[..., Any] = getattr(transformers, parts.image_processor)
    processor = for_images(PROCESSOR_MAPPING[type(model.config)])(
        make(**parts.sizes), tokenizer, chat_template=tokenizer.chat_template, **parts.processor
    )
    processor.save_pretrained(folder)
    return folder


def _tokenizer(parts: ProcessorParts) -> PreTrainedTokenizerFast:
    tokenizer = byte_level()
    special = parts.special
    named = dict(special) if isinstance(special, Mapping) else {}
    listed = [*named.values()] if named else list(special)
    added = list(dict.fromkeys([parts.placeholder, *listed]))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token=END, extra_special_tokens=named
    )
    tokenizer.add_special_tokens({"additional_special_tokens": added})
    tokenizer.chat_template = TEMPLATE.replace("MARK", parts.mark)
    return tokenizer
