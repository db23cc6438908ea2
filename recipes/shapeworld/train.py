"""Trains the vision-language pair of ShapeWorld: python recipes/shapeworld/train.py FOLDER

A stage whose result is in the folder is not run again. The folders target-SEED and drafter-SEED
have the Hugging Face layout, with weights in float16.
"""

import json
import math
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.image_utils import PILImageResampling

from treesnake.evaluation.shapeworld.dialogues import TASKS, Dialogue, caption
from treesnake.evaluation.shapeworld.scenes import COLORS, SHAPES, SIDE, Scene, draw, random_scene
from treesnake.files import write_text
from treesnake.kept_work import sha256_of_file
from treesnake.training.muon import Muon

RECIPE = Path(__file__).with_name("recipe.toml")

PAD, START, END, USER, ASSISTANT, IMAGE = (
    "<pad>",
    "<s>",
    "</s>",
    "<user>",
    "<assistant>",
    "<image>",
)
SPECIAL_TOKENS = [PAD, START, END, USER, ASSISTANT, IMAGE]

CHAT_TEMPLATE = (
    "<s>{% for message in messages %}<{{ message['role'] }}>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

UNLABELLED = -100
BATCHES_SORTED_TOGETHER = 4
REPORT_EVERY = 100


@dataclass(frozen=True)
class Example:
    """A dialogue as tokens, those of answers labelled, and its pictures."""

    token_ids: list[int]
    labels: list[int]
    scenes: tuple[Scene, ...]


@dataclass(frozen=True)
class Pictures:
    """How often a dialogue keeps its pictures, and else, how often captions stand for them."""

    first_turns: float = 1.0
    second_turns: float = 1.0
    captioned: float = 0.0

    def keeps(self, dialogue: Dialogue, rng: Random) -> bool:
        return rng.random() < (self.first_turns if len(dialogue.turns) == 1 else self.second_turns)


class Examples:
    """Makes examples without end.

    Args:
        tokenizer: of the pair.
        num_patches: how many placeholders a picture has.
        tasks: how often each occurs.
        pictures: how often dialogues keep theirs.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        num_patches: int,
        tasks: dict[str, float],
        pictures: Pictures,
    ) -> None:
        self._tokenizer = tokenizer
        self._num_patches = num_patches
        self._tasks = tasks
        self._pictures = pictures

    def batches(self, size: int, rng: Random) -> Iterator[list[Example]]:
        """Yields batches of examples that are about equally long."""
        while True:
            examples = [self._example(rng) for _ in range(size * BATCHES_SORTED_TOGETHER)]
            examples.sort(key=lambda each: len(each.token_ids))
            batches = [examples[n : n + size] for n in range(0, len(examples), size)]
            rng.shuffle(batches)
            yield from batches

    def _example(self, rng: Random) -> Example:
        (name,) = rng.choices([*self._tasks], [*self._tasks.values()])
        dialogue = TASKS[name](rng)
        if self._pictures.keeps(dialogue, rng):
            heads = [[self._id(IMAGE)] * self._num_patches for _ in dialogue.scenes]
            return self._encoded(dialogue, heads, dialogue.scenes)
        if rng.random() < self._pictures.captioned:
            heads = [self._ids(caption(scene)) for scene in dialogue.scenes]
        else:
            heads = [self._ids("\n") for _ in dialogue.scenes]
        return self._encoded(dialogue, heads, ())

    def _encoded(
        self, dialogue: Dialogue, heads: Sequence[list[int]], scenes: tuple[Scene, ...]
    ) -> Example:
        """Returns tokens as the chat template makes them, with `heads` for the pictures."""
        ids, labels = [self._id(START)], [UNLABELLED]
        opening = [token for head in heads for token in [*head, *self._ids("\n")]]
        for turn in dialogue.turns:
            asked = [self._id(USER), *opening, *self._ids(turn.question), self._id(ASSISTANT)]
            answer = [*self._ids(turn.answer), self._id(END)]
            ids += asked + answer
            labels += [UNLABELLED] * len(asked) + answer
            opening = []
        return Example(ids, labels, scenes)

    def _id(self, token: str) -> int:
        return self._tokenizer.token_to_id(token)

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids


def train_tokenizer(recipe: dict[str, Any]) -> Tokenizer:
    """Returns a tokenizer that reads any text, and words of this world as one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe["vocab_size"],
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = Random(0)
    dialogues = [task(rng) for task in TASKS.values() for _ in range(recipe["num_dialogues"] // 11)]
    texts = [text for each in dialogues for turn in each.turns for text in vars(turn).values()]
    captions = [caption(scene) for each in dialogues for scene in each.scenes]
    tokenizer.train_from_iterator([*texts, *captions, *[text.lower() for text in texts]], trainer)
    return tokenizer


def image_processor() -> CLIPImageProcessorPil:
    """Returns what makes pixels of pictures; a scene that was enlarged becomes what it was."""
    return CLIPImageProcessorPil(
        resample=PILImageResampling.BOX,
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def pixels(scenes: Sequence[Scene], rng: Random) -> Tensor:
    """Returns drawn pictures as the image processor makes them."""
    drawn = np.stack([draw(scene, rng) for scene in scenes])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1


def tower_config(recipe: dict[str, Any]) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=recipe["hidden_size"],
        intermediate_size=2 * recipe["hidden_size"],
        num_hidden_layers=recipe["num_layers"],
        num_attention_heads=recipe["num_heads"],
        image_size=SIDE,
        patch_size=recipe["patch_size"],
        projection_dim=32,
    )


def train_tower(recipe: dict[str, Any]) -> CLIPVisionModel:
    """Returns a tower whose patches tell color, shape and size of the figure in their corner."""
    torch.manual_seed(0)
    tower = CLIPVisionModel(tower_config(recipe))
    kinds = (len(COLORS) + 1, len(SHAPES) + 1, 3)
    heads = nn.ModuleList([nn.Linear(recipe["hidden_size"], number) for number in kinds])
    rng = Random(0)
    per_corner = SIDE // recipe["patch_size"] // 2

    def loss() -> Tensor:
        scenes = [random_scene(rng) for _ in range(recipe["batch_size"])]
        labels = torch.tensor([_corner_labels(scene) for scene in scenes])
        patches = tower(pixels(scenes, rng)).last_hidden_state[:, 1:]
        corners = patches.unflatten(1, (2, per_corner, 2, per_corner)).transpose(2, 3)
        corners = corners.flatten(3, 4).flatten(1, 2).mean(2)
        return sum(
            F.cross_entropy(head(corners).flatten(0, 1), labels[..., kind].flatten())
            for kind, head in enumerate(heads)
        )

    learn("tower", nn.ModuleList([tower, heads]), loss, recipe)
    return tower.requires_grad_(False).eval()


def _corner_labels(scene: Scene) -> list[list[int]]:
    """Returns color, shape and size of each corner as numbers; 0 is nothing."""
    colors, shapes = [*COLORS], [*SHAPES]
    return [
        [colors.index(each.color) + 1, shapes.index(each.shape) + 1, int(each.is_large) + 1]
        if (each := scene.get(corner))
        else [0, 0, 0]
        for corner in range(4)
    ]


def build(
    recipe: dict[str, Any], tower: dict[str, Any], tokenizer: Tokenizer
) -> LlavaForConditionalGeneration:
    """Returns a vision-language model with random weights."""
    size = recipe["hidden_size"]
    text = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=size,
        intermediate_size=2 * size,
        num_hidden_layers=recipe["num_layers"],
        num_attention_heads=recipe["num_heads"],
        num_key_value_heads=recipe["num_heads"],
        max_position_embeddings=512,
        bos_token_id=tokenizer.token_to_id(START),
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=tower_config(tower),
        text_config=text,
        image_token_id=tokenizer.token_to_id(IMAGE),
        image_seq_length=(SIDE // tower["patch_size"]) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def train_language_model(
    name: str,
    model: LlavaForConditionalGeneration,
    tower: CLIPVisionModel,
    examples: Examples,
    recipe: dict[str, Any],
    seed: int,
) -> None:
    """Trains all of a model but its tower, which is given."""
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.vision_tower.requires_grad_(False)
    rng = Random(seed)
    batches = examples.batches(recipe["batch_size"], rng)
    learn(name, model, lambda: batch_loss(model, next(batches), rng), recipe)


def batch_loss(
    model: LlavaForConditionalGeneration, examples: Sequence[Example], rng: Random
) -> Tensor:
    """Returns the cross entropy of answers.

    Texts are padded at their end, where a causal model needs no mask, and the vocabulary is only
    looked at where there is a label.
    """
    longest = max(len(each.token_ids) for each in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    labels = torch.full((len(examples), longest), UNLABELLED)
    for row, each in enumerate(examples):
        ids[row, : len(each.token_ids)] = torch.tensor(each.token_ids)
        labels[row, : len(each.labels)] = torch.tensor(each.labels)
    scenes = [scene for each in examples for scene in each.scenes]
    seen = {"pixel_values": pixels(scenes, rng)} if scenes else {}
    hidden = model.model(input_ids=ids, use_cache=False, **seen).last_hidden_state[:, :-1]
    is_labelled = labels[:, 1:] != UNLABELLED
    logits = model.lm_head(hidden[is_labelled])
    return F.cross_entropy(logits, labels[:, 1:][is_labelled])


def learn(name: str, model: nn.Module, loss: Callable[[], Tensor], recipe: dict[str, Any]) -> None:
    """Updates a model: matrices by Muon, embeddings and vectors by AdamW, the rate a cosine."""
    trained = {key: each for key, each in model.named_parameters() if each.requires_grad}
    matrices = {key for key, each in trained.items() if each.ndim == 2 and "embed" not in key}
    rest = [each for key, each in trained.items() if key not in matrices]
    optimizers = [
        Muon([trained[key] for key in sorted(matrices)], {}, recipe["learning_rate"], 0.01),
        torch.optim.AdamW(rest, recipe["learning_rate"], betas=(0.9, 0.98), weight_decay=0.01),
    ]
    model.train()
    start, mean = time.monotonic(), 0.0
    for step in range(recipe["steps"]):
        rate = recipe["learning_rate"] * min(1, (step + 1) / 80)
        rate *= 0.02 + 0.49 * (1 + math.cos(math.pi * step / recipe["steps"]))
        for group in (group for each in optimizers for group in each.param_groups):
            group["lr"] = rate
        found = loss()
        found.backward()
        nn.utils.clip_grad_norm_([*trained.values()], 1.0)
        for each in optimizers:
            each.step()
            each.zero_grad()
        mean += (found.item() - mean) * (0.03 if step else 1.0)
        if (step + 1) % REPORT_EVERY == 0:
            elapsed = time.monotonic() - start
            print(f"{name} step {step + 1} loss {mean:.4f} {elapsed:.0f} s", flush=True)
    model.eval()


def processor(tokenizer: Tokenizer, tower: dict[str, Any]) -> LlavaProcessor:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    return LlavaProcessor(
        image_processor(),
        fast,
        patch_size=tower["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def save(
    folder: Path,
    model: LlavaForConditionalGeneration,
    maker: LlavaProcessor,
    provenance: dict[str, Any],
) -> None:
    """Writes a folder that transformers and treesnake load, with a digest of each of its files."""
    model.half().save_pretrained(folder)
    maker.save_pretrained(folder)
    digests = {path.name: sha256_of_file(path) for path in sorted(folder.iterdir())}
    provenance = {**provenance, "license": "Apache-2.0", "file_sha256": digests}
    write_text(folder / "provenance.json", json.dumps(provenance, indent=2) + "\n")


def load_tower(folder: Path, recipe: dict[str, Any]) -> CLIPVisionModel:
    """Returns the tower, trained first unless the folder has it."""
    if not folder.is_dir():
        train_tower(recipe).save_pretrained(folder)
    return CLIPVisionModel.from_pretrained(folder).requires_grad_(False).eval()


def train(recipe: dict[str, Any], out: Path) -> None:
    """Trains what a folder lacks."""
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(recipe["tokenizer"])
    tower = load_tower(out / "tower", recipe["tower"])
    num_patches = (SIDE // recipe["tower"]["patch_size"]) ** 2
    for seed in recipe["seeds"]:
        for number, role in enumerate(("target", "drafter")):
            folder = out / f"{role}-{seed}"
            if folder.is_dir():
                continue
            part = recipe[role]
            torch.manual_seed(2 * seed + number)
            model = build(part, recipe["tower"], tokenizer)
            pictures = Pictures(**part.get("pictures", {}))
            examples = Examples(tokenizer, num_patches, part["tasks"], pictures)
            train_language_model(folder.name, model, tower, examples, part, seed)
            provenance = {"recipe": recipe, "seed": seed, "torch": torch.__version__}
            save(folder, model, processor(tokenizer, recipe["tower"]), provenance)


if __name__ == "__main__":
    train(tomllib.loads(RECIPE.read_text("utf-8")), Path(sys.argv[1]))
