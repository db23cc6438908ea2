"""Which streams predict the target best, and does a mixture of them do as well everywhere?

    python recipes/shapeworld/train.py runs/shapeworld
    python benchmarks/tabed.py --pairs runs/shapeworld --prompts 64 --seeds 0 1 2 \
        --threads 1 --output results/tabed.json

Texts of the target are recorded with what each stream of the drafter expected at every token. Then
every ensemble and every rule of weights is replayed over them. That is exact for greedy decoding,
whose text no draft changes: a token is accepted if it is among the best of the mixture. When
sampling, a token y of the target's text was accepted with probability min(1, q(y) / p(y)), which is
drawn. Streams: M sees the pictures, T a line break for each, C a caption of colors and shapes, P
features pooled to a quarter. Streams of little weight are left out as in the drafter, but for
their price: no clock has a say.

Weights begin equal with each text. "after others" they begin with what earlier texts of the task
ended with, as those of `MixtureDrafter` do; "mixed" are the same texts in a random order of tasks.
"""

import copy
import multiprocessing
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from frame import Result, print_table, run
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from treesnake.drafters.first_weights import FirstWeights
from treesnake.drafters.mixture import LEAST_WEIGHT, RETRY_STEPS, TRIAL_STEPS
from treesnake.drafters.weight_rules import WEIGHT_RULES, Evidence, FixedWeights, uniform
from treesnake.evaluation.shapeworld.dialogues import TASKS, Dialogue, caption
from treesnake.evaluation.shapeworld.scenes import draw

DRAFTED = 5
WIDTHS = (2, 3)
MAX_NEW_TOKENS = 96
FIRST_SEED = 10_000
"""Dialogues of the benchmark begin with this seed, those of training with 0, 1 and 2."""

MEASURED_TASKS = [name for name in TASKS if name != "bare_story"]
MODES = ("greedy", "sampling")
STREAMS = ("M", "T", "C", "P")
ENSEMBLES = ("MT", "MTC", "MTP", "MTCP")
TREE_ENSEMBLES = ("MT", "MTCP")
DEFAULT_RULE = "hedge"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--pairs", type=Path, required=True, help="folder of target-N, drafter-N")
    parser.add_argument("--prompts", type=int, default=64, help="of each task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--texts", type=Path, help="folder that keeps recorded texts")


@dataclass(frozen=True)
class Text:
    """A text of the target, and what target and streams expected of each of its tokens."""

    tokens: np.ndarray
    target_probs: np.ndarray
    draft_probs: Mapping[str, np.ndarray]

    def as_greedy(self) -> "Text":
        """Returns the text as greedy decoding has it: the target says its best token alone."""
        columns = np.eye(self.target_probs.shape[-1], dtype=np.float32)
        return replace(self, target_probs=columns[self.target_probs.argmax(-1)])


def _recorded(file: Path | None, record: Callable[[], Iterator[Text]]) -> list[Text]:
    """Returns texts from a file, or records them and keeps them there."""
    if file is None:
        return list(record())
    if not file.exists():
        texts = list(record())
        columns = {
            f"{number} {name}": rows
            for number, text in enumerate(texts)
            for name, rows in {
                "tokens": text.tokens,
                "target": text.target_probs,
                **text.draft_probs,
            }.items()
        }
        np.savez(file, **columns)
        return texts
    with np.load(file) as columns:
        return [
            Text(
                columns[f"{number} tokens"],
                columns[f"{number} target"],
                {name: columns[f"{number} {name}"] for name in STREAMS},
            )
            for number in range(len(columns.files) // (2 + len(STREAMS)))
        ]


@dataclass(frozen=True)
class Prompts:
    """The prompts of a task with the tokens of each stream's view of them."""

    views: Mapping[str, Sequence[list[int]]]
    pixels: Sequence[Tensor | None]


def measure(arguments: Namespace) -> Result:
    """Measures each seed in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context) as pool:
        measure_seed = partial(_measure_seed, arguments.pairs, arguments.prompts, arguments.texts)
        parts = list(pool.map(measure_seed, arguments.seeds))
    facts = {"prompts": arguments.prompts, "seeds": arguments.seeds, "drafted": DRAFTED}
    tasks = {
        mode: {task: [part[mode][task] for part in parts] for task in MEASURED_TASKS}
        for mode in MODES
    }
    mixed = {mode: [part["mixed"][mode] for part in parts] for mode in MODES}
    return {**facts, **tasks, "mixed": mixed}


def _measure_seed(folder: Path, number: int, kept: Path | None, seed: int) -> Result:
    torch.set_num_threads(1)
    pair = RecordedPair(folder, seed)
    measured: Result = {mode: {} for mode in MODES}
    judged: dict[str, list[Judged]] = {mode: [] for mode in MODES}
    for task in MEASURED_TASKS:
        prompts, is_right = pair.prompts(task, number)
        for mode in MODES:
            file = kept and kept / f"{seed}-{task}-{mode}-{number}.npz"
            texts = _recorded(file, partial(pair.texts, prompts, mode))
            entry: Result = {"tokens": sum(len(each.tokens) for each in texts)}
            if mode == "greedy":
                texts = [text.as_greedy() for text in texts]
                entry["right"] = sum(map(is_right, range(len(texts)), texts))
            chains = _judged(texts, mode, seed)
            judged[mode] += chains
            trees = _trees(texts) if mode == "greedy" else {}
            measured[mode][task] = entry | {"steps": {**_chains(chains), **trees}}
        print(f"seed {seed}: {task}", flush=True)
    return measured | {"mixed": {mode: _mixed(judged[mode], seed) for mode in MODES}}


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


Judged = tuple[Text, "Accepts"]
"""A text, and what tells whether its tokens are accepted."""


def _judged(texts: Sequence[Text], mode: str, seed: int) -> list[Judged]:
    """Returns texts with what accepts their tokens in chains.

    A token of a sample has one chance for all drafters, so that they differ by what they expect.
    """
    rng = np.random.default_rng(seed)
    if mode == "greedy":
        return [(text, partial(_is_accepted, 1, text)) for text in texts]
    return [(text, partial(_is_drawn, rng.random(len(text.tokens)), text)) for text in texts]


def _chains(texts: Sequence[Judged]) -> dict[str, int]:
    """Returns the number of steps with chains, by the name of ensemble and rule."""
    counts = {
        _name(ensemble, rule): sum(
            _steps(ReplayedMixture(text, ensemble, rule), accepts) for text, accepts in texts
        )
        for ensemble, rule in _policies(ENSEMBLES, tuple(WEIGHT_RULES))
    }
    return counts | {
        f"{ensemble} {DEFAULT_RULE}, after others": _after_others(texts, ensemble)
        for ensemble in ENSEMBLES
    }


def _mixed(texts: Sequence[Judged], seed: int) -> Result:
    """Returns the steps of the default rule for all texts in a random order."""
    order = np.random.default_rng(seed).permutation(len(texts))
    steps = {
        ensemble: _after_others([texts[index] for index in order], ensemble)
        for ensemble in ENSEMBLES
    }
    return {"tokens": sum(len(text.tokens) for text, _ in texts), "steps": steps}


def _after_others(texts: Sequence[Judged], ensemble: str) -> int:
    """Returns the steps of the default rule where a text begins as earlier ones ended."""
    first, steps = FirstWeights(), 0
    for text, accepts in texts:
        mixture = ReplayedMixture(text, ensemble, DEFAULT_RULE, first.weights(len(ensemble)))
        steps += _steps(mixture, accepts)
        if mixture.has_choice:
            first.count(mixture.weights, None)
    return steps


def _trees(texts: Sequence[Text]) -> dict[str, int]:
    """Returns the number of steps with full trees."""
    return {
        f"{_name(ensemble, rule)}, width {width}": sum(
            _steps(ReplayedMixture(text, ensemble, rule), partial(_is_accepted, width, text))
            for text in texts
        )
        for width in WIDTHS
        for ensemble, rule in _policies(TREE_ENSEMBLES, ("uniform", DEFAULT_RULE))
    }


def _policies(ensembles: Sequence[str], rules: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield from ((stream, "uniform") for stream in STREAMS)
    yield from ((ensemble, rule) for ensemble in ensembles for rule in rules)


def _name(ensemble: str, rule: str) -> str:
    return ensemble if len(ensemble) == 1 else f"{ensemble} {rule}"


class ReplayedMixture:
    """The weights of a mixture over a text of the target, as those of `MixtureDrafter` move.

    Args:
        text: the text.
        ensemble: the letters of its streams.
        rule: what moves the weights, by name.
        first: the weights that it begins with; None is equal ones.
    """

    def __init__(
        self, text: Text, ensemble: str, rule: str, first: np.ndarray | None = None
    ) -> None:
        self.text = text
        self._draft = np.stack([text.draft_probs[name] for name in ensemble])
        self._rule = WEIGHT_RULES[rule]()
        self._weighing = self._rule.start(uniform(len(ensemble)) if first is None else first)
        self._num_steps = 0

    @property
    def weights(self) -> np.ndarray:
        """Those of the next step."""
        return self._weighing.weights

    @property
    def has_choice(self) -> bool:
        """Whether its streams read the prompt differently."""
        return not np.allclose(self._draft[0], self._draft[1:], atol=1e-4)

    def expects(self, start: int, end: int) -> np.ndarray:
        """Returns what the mixture expects at some positions."""
        return np.tensordot(self._shares, self._draft[:, start:end], 1)

    def learns(self, start: int, end: int) -> None:
        """Moves the weights by what the target said at the positions of a step."""
        if isinstance(self._rule, FixedWeights):
            return
        said = self.text.target_probs[start:end]
        draft = self._draft[:, start:end].copy()
        draft[self._shares == 0] = self.expects(start, end)
        is_left_out = (self._shares == 0).any()
        evidence = Evidence([*draft.swapaxes(0, 1)], [*said])
        self._weighing = self._rule.update(self._weighing, evidence)
        self._num_steps += 1
        if is_left_out and self._num_steps >= RETRY_STEPS:
            self._num_steps = 0

    @property
    def _shares(self) -> np.ndarray:
        """The weights of the streams that run, and 0 for those left out."""
        shares = self._weighing.weights.astype(np.float32)
        if self._num_steps >= TRIAL_STEPS:
            shares[shares < LEAST_WEIGHT] = 0
        return shares / shares.sum()


Accepts = Callable[[int, np.ndarray], bool]
"""Tells whether a token of a text, by its index, is accepted from what the mixture expected."""


def _is_accepted(width: int, text: Text, index: int, expected: np.ndarray) -> bool:
    return int((expected > expected[text.tokens[index]]).sum()) < width


def _is_drawn(chances: np.ndarray, text: Text, index: int, expected: np.ndarray) -> bool:
    token = text.tokens[index]
    return bool(chances[index] * text.target_probs[index, token] < expected[token])


def _steps(mixture: ReplayedMixture, accepts: Accepts) -> int:
    """Returns in how many steps a text is emitted."""
    length, start, steps = len(mixture.text.tokens), 0, 0
    while start < length:
        end = min(start + DRAFTED, length)
        expected = mixture.expects(start, end)
        index = start
        while index < end and accepts(index, expected[index - start]):
            index += 1
        mixture.learns(start, min(index + 1, end))  # those accepted, and the first that was not
        start, steps = index + 1, steps + 1
    return steps


def show(result: Result) -> None:
    names = [
        *STREAMS,
        *(f"MT {rule}" for rule in WEIGHT_RULES),
        f"MTCP {DEFAULT_RULE}, after others",
    ]
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
