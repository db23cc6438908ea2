"""Which streams predict the target best, and does a mixture of them do as well everywhere?

    python recipes/shapeworld/train.py runs/shapeworld
    python benchmarks/tabed.py --pairs runs/shapeworld --prompts 32 --seeds 0 1 --run 2 \
        --threads 1 --output results/tabed.json

Texts of the target are recorded with what each stream of the drafter expected at every token. Then
every ensemble and every rule of weights is replayed over them. That is exact for greedy decoding,
whose text no draft changes: a token is accepted if it is among the best of the mixture. When
sampling, a token y of the target's text was accepted with probability min(1, q(y) / p(y)), which is
drawn. Streams: M sees the pictures, T a line break for each, C a caption of colors and shapes, P
features pooled to a quarter.

The drafters themselves run, too, on some of the prompts: their tokens a step, and seconds.
"""

import copy
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from frame import Result, print_table, run
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from treesnake import SpeculativeDecoder
from treesnake.drafters.weight_rules import WEIGHT_RULES, Evidence, FixedWeights
from treesnake.evaluation.shapeworld.dialogues import TASKS, Dialogue, caption
from treesnake.evaluation.shapeworld.scenes import draw

DRAFTED = 5
WIDTHS = (2, 3)
MAX_NEW_TOKENS = 96
FIRST_SEED = 10_000
"""Dialogues of the benchmark begin with this seed, those of training with 0, 1 and 2."""

MEASURED_TASKS = [name for name in TASKS if name != "bare_story"]
METHODS = (
    ("off", ":M", "off"),
    ("M", ":M", f"chain({DRAFTED})"),
    ("T", ":T", f"chain({DRAFTED})"),
    ("MT uniform", ":MT:uniform", f"chain({DRAFTED})"),
    ("MT em", ":MT:em", f"chain({DRAFTED})"),
    ("MT em, self-tuning", ":MT:em", "self-tuning"),
)
"""What runs: its name, how the drafter's name ends, the search."""

STREAMS = ("M", "T", "C", "P")
ENSEMBLES = ("MT", "MTC", "MTP", "MTCP")
TREE_ENSEMBLES = ("MT", "MTCP")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--pairs", type=Path, required=True, help="folder of target-N, drafter-N")
    parser.add_argument("--prompts", type=int, default=64, help="of each task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--run", type=int, default=3, help="prompts of each task that are run")


@dataclass(frozen=True)
class Text:
    """A text of the target, and what target and streams expected of each of its tokens."""

    tokens: np.ndarray
    target_probs: np.ndarray
    draft_probs: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Prompts:
    """The prompts of a task with the tokens of each stream's view of them."""

    views: Mapping[str, Sequence[list[int]]]
    pixels: Sequence[Tensor | None]


def measure(arguments: Namespace) -> Result:
    measured = {}
    for seed in arguments.seeds:
        pair = RecordedPair(arguments.pairs, seed)
        for task in MEASURED_TASKS:
            prompts, is_right = pair.prompts(task, arguments.prompts)
            for mode in ("greedy", "sampling"):
                texts = list(pair.texts(prompts, mode))
                entry = {"tokens": sum(len(each.tokens) for each in texts)}
                if mode == "greedy":
                    entry["right"] = sum(map(is_right, range(len(texts)), texts))
                counts = {
                    **_chains(texts, mode, seed),
                    **(_trees(texts) if mode == "greedy" else {}),
                }
                measured.setdefault(mode, {}).setdefault(task, []).append(entry | {"steps": counts})
            print(f"seed {seed}: {task}", flush=True)
    run_here = _run(arguments.pairs, arguments.seeds[0], arguments.run)
    facts = {"prompts": arguments.prompts, "seeds": arguments.seeds, "drafted": DRAFTED}
    return {**facts, **measured, "run": {"prompts": arguments.run, "methods": run_here}}


def _run(folder: Path, seed: int, number: int) -> Result:
    """Returns tokens, steps and seconds of drafters that run, prompt by prompt in turn."""
    target, drafter = str(folder / f"target-{seed}"), str(folder / f"drafter-{seed}")
    decoders = {
        name: SpeculativeDecoder.from_pretrained(
            target, drafter + ending, search=search, memory=False
        )
        for name, ending, search in METHODS
    }
    counted = {name: {"tokens": 0, "steps": 0, "seconds": 0.0} for name in decoders}
    for task in MEASURED_TASKS:
        for index in range(-1, number):  # the first one makes room and is not counted
            dialogue = TASKS[task](Random(FIRST_SEED + max(index, 0)))
            rng = Random(FIRST_SEED + max(index, 0))
            pictures = [Image.fromarray(draw(scene, rng)) for scene in dialogue.scenes]
            for name, decoder in decoders.items():
                made = decoder.generate(
                    _messages(dialogue, pictures), max_new_tokens=MAX_NEW_TOKENS
                )
                if index >= 0:
                    counted[name]["tokens"] += len(made.token_ids)
                    counted[name]["steps"] += len(made.steps)
                    counted[name]["seconds"] += sum(step.seconds.total_s for step in made.steps)
    return counted


class RecordedPair:
    """A target and a drafter of one seed, with what makes their prompts."""

    def __init__(self, folder: Path, seed: int) -> None:
        load = partial(LlavaForConditionalGeneration.from_pretrained, dtype=torch.float32)
        self.target = load(folder / f"target-{seed}").eval()
        self._drafter = load(folder / f"drafter-{seed}").eval()
        self._processor = AutoProcessor.from_pretrained(folder / f"target-{seed}")
        self._tokenizer = self._processor.tokenizer

    def prompts(self, task: str, number: int) -> tuple[Prompts, Any]:
        """Returns prompts, and what tells whether an answer is the one that was meant."""
        dialogues = [TASKS[task](Random(FIRST_SEED + n)) for n in range(number)]
        encoded = [self._encoded(dialogue, n) for n, dialogue in enumerate(dialogues)]

        def is_right(index: int, text: Text) -> bool:
            answer = self._tokenizer.decode(text.tokens, skip_special_tokens=True)
            return answer == dialogues[index].turns[-1].answer

        views = {name: [views[name] for views, _ in encoded] for name in STREAMS}
        return Prompts(views, [pixels for _, pixels in encoded]), is_right

    def _encoded(self, dialogue: Dialogue, number: int) -> tuple[dict[str, list[int]], Any]:
        rng = Random(FIRST_SEED + number)
        pictures = [draw(scene, rng) for scene in dialogue.scenes]
        messages = _messages(dialogue, pictures)
        encoded = self._processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        ids = encoded["input_ids"][0].tolist()
        size = self.target.config.image_seq_length
        views = {
            "M": ids,
            "T": self._replaced(ids, [self._ids("\n") for _ in pictures]),
            "C": self._replaced(ids, [self._ids(caption(scene)) for scene in dialogue.scenes]),
            "P": self._replaced(ids, [[self._image_token] * (size // 4) for _ in pictures]),
        }
        return views, encoded.get("pixel_values")

    def _replaced(self, ids: Sequence[int], parts: Sequence[list[int]]) -> list[int]:
        """Puts parts in the place of pictures."""
        size = self.target.config.image_seq_length
        left, out, index = iter(parts), [], 0
        while index < len(ids):
            is_picture = ids[index] == self._image_token
            out += next(left) if is_picture else [ids[index]]
            index += size if is_picture else 1
        return out

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    @property
    def _image_token(self) -> int:
        return self.target.config.image_token_id

    def texts(self, prompts: Prompts, mode: str) -> Iterator[Text]:
        """Yields what the target says, prompt by prompt."""
        for index, tokens in enumerate(self._answers(prompts, is_greedy=mode == "greedy")):
            pixels = prompts.pixels[index]
            view = {name: views[index] for name, views in prompts.views.items()}
            draft = {
                name: expected_probs(self._drafter, ids, tokens, *_seen(name, pixels))
                for name, ids in view.items()
            }
            yield Text(
                np.array(tokens), expected_probs(self.target, view["M"], tokens, pixels), draft
            )

    def _answers(self, prompts: Prompts, *, is_greedy: bool) -> list[list[int]]:
        """Returns the target's texts for all prompts, which it makes together."""
        torch.manual_seed(0)
        ids = prompts.views["M"]
        longest = max(map(len, ids))
        padded = torch.tensor([[0] * (longest - len(each)) + each for each in ids])
        mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in ids])
        pixels = [each for each in prompts.pixels if each is not None]
        with torch.inference_mode():
            made = self.target.generate(
                input_ids=padded,
                attention_mask=mask,
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=not is_greedy,
                **({} if is_greedy else {"top_k": 0}),
                **({"pixel_values": torch.cat(pixels)} if pixels else {}),
            )[:, longest:].tolist()
        end = self._tokenizer.eos_token_id
        return [row[: row.index(end) + 1] if end in row else row for row in made]


def _messages(dialogue: Dialogue, pictures: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns the messages up to the last question."""
    parts = [{"type": "image", "image": picture} for picture in pictures]
    messages: list[dict[str, Any]] = []
    for turn in dialogue.turns:
        question = [*parts, {"type": "text", "text": turn.question}]
        answer = {"role": "assistant", "content": turn.answer}
        messages += [{"role": "user", "content": question}, answer]
        parts = []
    return messages[:-1]


def _seen(stream: str, pixels: Tensor | None) -> tuple[Tensor | None, bool]:
    """Returns the pictures that a stream sees, and whether they are pooled."""
    return (pixels if stream in "MP" else None), stream == "P"


@torch.inference_mode()
def expected_probs(
    model: LlavaForConditionalGeneration,
    prompt: list[int],
    tokens: list[int],
    pixels: Tensor | None,
    is_pooled: bool = False,
) -> np.ndarray:
    """Returns what a model expects at each of the tokens behind a prompt."""
    inner, ids = model.model, torch.tensor([prompt + tokens])
    embedded = inner.get_input_embeddings()(ids)
    if pixels is not None:
        features = inner.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
        if is_pooled:
            side = int(features.shape[1] ** 0.5)
            grid = features.transpose(1, 2).unflatten(2, (side, side))
            features = torch.nn.functional.avg_pool2d(grid, 2).flatten(2).transpose(1, 2)
        projected = inner.multi_modal_projector(features)
        is_picture = torch.tensor([prompt]) == model.config.image_token_id
        embedded[:, : len(prompt)][is_picture] = projected.flatten(0, 1)
    hidden = inner.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[0, len(prompt) - 1 : -1])
    return logits.softmax(-1).numpy()


def _chains(texts: Sequence[Text], mode: str, seed: int) -> dict[str, int]:
    """Returns the number of steps with chains, by the name of ensemble and rule."""
    rng = np.random.default_rng(seed)
    counts = {}
    for ensemble, rule in _policies(ENSEMBLES, tuple(WEIGHT_RULES)):
        accepts = partial(_is_accepted, width=1) if mode == "greedy" else partial(_is_drawn, rng)
        counts[_name(ensemble, rule)] = sum(_steps(each, ensemble, rule, accepts) for each in texts)
    return counts


def _trees(texts: Sequence[Text]) -> dict[str, int]:
    """Returns the number of steps with full trees."""
    return {
        f"{_name(ensemble, rule)}, width {width}": sum(
            _steps(each, ensemble, rule, partial(_is_accepted, width=width)) for each in texts
        )
        for width in WIDTHS
        for ensemble, rule in _policies(TREE_ENSEMBLES, ("uniform", "em"))
    }


def _policies(ensembles: Sequence[str], rules: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield from ((stream, "uniform") for stream in STREAMS)
    yield from ((ensemble, rule) for ensemble in ensembles for rule in rules)


def _name(ensemble: str, rule: str) -> str:
    return ensemble if len(ensemble) == 1 else f"{ensemble} {rule}"


def _is_accepted(mixture: np.ndarray, _: np.ndarray, token: int, width: int) -> bool:
    return int((mixture > mixture[token]).sum()) < width


def _is_drawn(
    rng: np.random.Generator, mixture: np.ndarray, target: np.ndarray, token: int
) -> bool:
    return bool(rng.random() * target[token] < mixture[token])


def _steps(text: Text, ensemble: str, rule_name: str, accepts: Any) -> int:
    """Returns in how many steps a text is emitted."""
    rule = WEIGHT_RULES[rule_name]()
    draft = np.stack([text.draft_probs[name] for name in ensemble])
    weighing, start, steps = rule.start(len(ensemble)), 0, 0
    while start < len(text.tokens):
        end = min(start + DRAFTED, len(text.tokens))
        mixture = np.tensordot(weighing.weights, draft[:, start:end], 1)
        index = start
        while index < end and accepts(
            mixture[index - start], text.target_probs[index], text.tokens[index]
        ):
            index += 1
        looked = slice(start, min(index + 1, end))  # those accepted, and the first that was not
        if not isinstance(rule, FixedWeights):
            evidence = Evidence(draft[:, looked], text.target_probs[looked])
            weighing = rule.update(weighing, evidence)
        start, steps = index + 1, steps + 1
    return steps


def show(result: Result) -> None:
    names = [*STREAMS, *(f"MT {rule}" for rule in WEIGHT_RULES), "MTCP em"]
    for mode in ("greedy", "sampling"):
        tasks = copy.copy(result[mode])
        tasks["all"] = [entry for entries in result[mode].values() for entry in entries]
        rows = []
        for task, entries in tasks.items():
            tokens = sum(entry["tokens"] for entry in entries)
            steps = [sum(entry["steps"][name] for entry in entries) for name in names]
            rows.append([task, *(f"{tokens / number:.2f}" for number in steps)])
        print_table(f"tokens a step, {mode}", ["task", *names], rows)


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
