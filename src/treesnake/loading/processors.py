"""Prompts with images, made by the processor that comes with a model.

The processor of transformers is used as it is: it scales images, turns them into tensors, and
writes as many placeholders into the text as the model has features for each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers
from jaxtyping import Shaped
from torch import Tensor

from treesnake.errors import InvalidInputError, LoadError, UnsupportedModelError, reason_of
from treesnake.images import check_pillow, read_image
from treesnake.loading.checkpoint import Checkpoint
from treesnake.models.json_files import read_json_object
from treesnake.prompt import Prompt, PromptInput

TEXT_ARGUMENTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""What a processor returns of the text, as long as the text is."""


class ImagePrompts:
    """Makes prompts of texts and images.

    Args:
        processor: the model's own.
        token_id: the token that stands for a feature of an image in the model's config.
    """

    def __init__(self, processor: "transformers.ProcessorMixin", token_id: int) -> None:
        self.processor = processor
        self.token_id = token_id
        self.mark: str = getattr(processor, "image_token", "")

    def encode(self, text: str, images: Sequence[tuple[str, object]]) -> Prompt:
        """Returns the prompt of a text that says where its images are, and nothing before it.

        Args:
            text: with the processor's mark for each image.
            images: what `treesnake.images.read_image` reads, in the order of the text, each with
                what messages call it.

        Raises:
            InvalidInputError: if an image cannot be read, or the text has another number of places.
        """
        number = text.count(self.mark) if self.mark else 0
        if number != len(images):
            raise InvalidInputError(
                f"images in the conversation: {len(images)}; places that the target's chat "
                f"template makes for them: {number}"
                + (f"; a text must not say {self.mark}" if number > len(images) else "")
            )
        read = [read_image(source, where) for where, source in images]
        whole = self._processed(text, read)
        token_ids = whole["input_ids"][0].tolist()
        tensors = self._tensors_of(whole, read)
        places = [index for index, token in enumerate(token_ids) if token == self.token_id]
        counts = [count for _, count in tensors]
        if sum(counts) != len(places):
            raise InvalidInputError(
                f"the target's processor makes {len(places)} placeholders of all images and "
                f"{counts} of each alone; give it one image"
            )
        inputs: list[PromptInput] = []
        for (named, count), picture in zip(tensors, read, strict=True):
            start, end = places[0], places[count - 1] + 1
            inputs.append(PromptInput(named, start, end - start, picture=picture))
            places = places[count:]
        return Prompt(tuple(token_ids), tuple(inputs))

    def _tensors_of(
        self, whole: Mapping[str, Any], images: Sequence[object]
    ) -> list[tuple[dict[str, Tensor], int]]:
        """Returns the tensors of each image and how many placeholders it has.

        Each is prepared alone, so that none is filled up to the size of another. Some processors
        prepare several images otherwise than one; then each has its row of every tensor.
        """
        number = len(images)
        if number == 1:
            return [self._alone(whole)]
        alone = [self._alone(self._processed(self.mark, [image])) for image in images]
        num_placeholders = int((whole["input_ids"] == self.token_id).sum())
        if sum(count for _, count in alone) == num_placeholders:
            return alone
        named = _without_text(whole)
        if num_placeholders % number or any(
            len(each) not in (1, number) for each in named.values()
        ):
            return alone
        return [
            (
                {
                    name: each[row : row + 1] if len(each) == number else each
                    for name, each in named.items()
                },
                num_placeholders // number,
            )
            for row in range(number)
        ]

    def _alone(self, processed: Mapping[str, Any]) -> tuple[dict[str, Tensor], int]:
        return _without_text(processed), int((processed["input_ids"] == self.token_id).sum())

    def _processed(self, text: str, images: Sequence[object]) -> Mapping[str, Any]:
        processor: Any = self.processor
        try:
            return processor(
                text=[text], images=[list(images)], return_tensors="pt", add_special_tokens=False
            )
        except Exception as error:
            raise InvalidInputError(
                f"the target's processor cannot read the images: {reason_of(error)}"
            ) from error


@dataclass(frozen=True, eq=False)
class ProcessorFiles:
    """The processor of a model, which is read from its files with the first image.

    Attributes:
        checkpoint: a model that sees images.
    """

    checkpoint: Checkpoint

    def encode(self, text: str, images: Sequence[tuple[str, object]]) -> Prompt:
        """Does what `ImagePrompts.encode` does.

        Raises:
            InvalidInputError: as there.
            LoadError: if a package is missing, or files are missing or broken.
            UnsupportedModelError: if transformers has no processor for the model.
        """
        return self._prompts.encode(text, images)

    @cached_property
    def _prompts(self) -> ImagePrompts:
        return ImagePrompts(load_processor(self.checkpoint), self.checkpoint.config.image_token_id)


NAMES = (
    *("auto_map", "chat_template", "feature_extractor_type", "image_processor_type"),
    *("processor_class", "video_processor"),
)
"""What the settings of a processor say about anything but what becomes of an image."""


def check_same_images(drafter: Checkpoint, target: Checkpoint) -> None:
    """Checks that a drafter can be given the images that were prepared for its target.

    Compares what the files of both processors say; what one of them leaves out is not compared.

    Raises:
        InvalidInputError: naming what differs.
    """
    theirs, ours = image_settings(target), image_settings(drafter)
    for name in sorted(theirs.keys() & ours.keys()):
        if theirs[name] != ours[name]:
            raise InvalidInputError(
                f"{drafter.name} prepares images otherwise than its target: {name} is "
                f"{ours[name]!r:.60} and not {theirs[name]!r:.60}; name it as {drafter.name}:T, "
                "and it reads the text alone"
            )


def image_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns what the files of a processor say of images, and the token that stands for them."""
    files = (checkpoint.path / name for name in (PREPROCESSOR_FILE, PROCESSOR_FILE))
    settings: dict[str, Any] = {}
    for path in files:
        fields = read_json_object(path) if path.exists() else {}
        nested = fields.pop("image_processor", None)
        settings |= fields | (nested if isinstance(nested, dict) else {})
    token = getattr(checkpoint.config, "image_token_id", None)
    kept = {name: value for name, value in settings.items() if name not in NAMES}
    return {"image_token_id": token, "model_type": checkpoint.config.model_type, **kept}


PREPROCESSOR_FILE, PROCESSOR_FILE = "preprocessor_config.json", "processor_config.json"

VIDEOS = "video_processor"
"""The part of a processor that reads videos."""


def load_processor(checkpoint: Checkpoint) -> "transformers.ProcessorMixin":
    """Returns the processor of a model that sees images, which needs no torchvision.

    Those of transformers that read videos, too, ask for torchvision, also where there is no video;
    they are made without that part.

    Raises:
        LoadError: if a package is missing, or files are missing or broken.
        UnsupportedModelError: if transformers has no processor for the model.
    """
    check_pillow()
    config = checkpoint.config
    if type(config) not in transformers.PROCESSOR_MAPPING:
        raise UnsupportedModelError(
            f"{checkpoint.name} has the model type {config.model_type!r}, for which transformers "
            "has no processor of images; give it text"
        )
    try:
        processor_class = for_images(transformers.PROCESSOR_MAPPING[type(config)])
        return processor_class.from_pretrained(
            checkpoint.path, trust_remote_code=checkpoint.trust_remote_code
        )
    except Exception as error:
        raise LoadError(
            f"the processor of {checkpoint.name}, which reads images, cannot be loaded: "
            f"{reason_of(error)}"
        ) from error


def for_images(processor_class: Any) -> Any:
    """Returns a class of processors without the part that reads videos."""
    parts = processor_class.get_attributes()
    if VIDEOS not in parts:
        return processor_class

    class ForImages(processor_class):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [part for part in parts if part != VIDEOS]

        @classmethod
        def from_args_and_dict(cls, args: Any, processor_dict: Any, **kwargs: Any) -> Any:
            return super().from_args_and_dict(args, {**processor_dict, VIDEOS: None}, **kwargs)

    ForImages.__name__ = processor_class.__name__
    return ForImages


def _without_text(processed: Mapping[str, Any]) -> dict[str, Shaped[Tensor, "..."]]:
    return {
        name: tensor
        for name, tensor in processed.items()
        if name not in TEXT_ARGUMENTS and isinstance(tensor, torch.Tensor)
    }
