"""The trained drafter that comes with the package."""

import json
from dataclasses import replace

from treesnake import SpeculativeDecoder
from treesnake.chance import TorchRng
from treesnake.drafters.composite import CompositeDrafterModel
from treesnake.drafters.load import SHIPPED_FOLDER, SHIPPED_FOR, load_drafter
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.loading.checkpoint import DEFAULT_MODEL, find_checkpoint
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams
from treesnake.shape import chain

FOLDER = SHIPPED_FOLDER / "treesnake-smol"
MOST_BYTES = 25e6


def test_auto_is_prompt_lookup_beside_what_was_trained_for_the_default_target() -> None:
    target = find_checkpoint(DEFAULT_MODEL)
    assert SHIPPED_FOR[target.name] == FOLDER.name
    both = load_drafter("auto", target=target)
    assert isinstance(both, CompositeDrafterModel)
    assert isinstance(both.first, NetworkDrafterModel)
    assert isinstance(both.second, NgramDrafterModel)


def test_the_target_accepts_much_of_what_it_drafts() -> None:
    decoder = SpeculativeDecoder.from_pretrained(
        drafter=FOLDER.name, dtype="int8", search="chain(3)"
    )
    question = "Tom has 3 boxes with 12 apples each. He gives 7 away. How many apples has he left?"
    generation = decoder.generate([{"role": "user", "content": question}], max_new_tokens=48)
    assert generation.mean_tokens_per_step > 1.4


def test_embeddings_of_its_own_draft_as_those_of_its_target_do() -> None:
    target = find_checkpoint(DEFAULT_MODEL)
    messages = [
        {"role": "user", "content": "What is a tree in computer science?"},
        {
            "role": "assistant",
            "content": "A tree is a data structure that consists of nodes. Each node has a value "
            "and a list of references to other nodes, which are called its children. The first "
            "node is the root of the tree, and nodes without children are called leaves.",
        },
    ]
    text = target.tokenizer.apply_chat_template(messages, tokenize=False)
    tokens = target.tokenizer.encode(text, add_special_tokens=False)
    drafted = []
    for ways in ("same", "text"):
        session = load_drafter(FOLDER.name, target=target, tokens=ways).new_session()
        session.prefill(Prompt.of(tokens[:-40]))
        firsts = []
        for token in tokens[-41:-1]:
            draft = session.draft(token, chain(1), SamplingParams(), TorchRng(0))
            firsts.append(draft.tree.tokens[1:])
            session.commit([token])
        drafted.append(firsts)
    num_alike = sum(ours == theirs for ours, theirs in zip(*drafted, strict=True))
    assert num_alike >= 30


def test_it_reads_its_own_embeddings_where_those_of_its_target_have_an_unknown_name() -> None:
    target = find_checkpoint(DEFAULT_MODEL)
    renamed = {name.replace("embed", "rows"): target.weights[name] for name in target.weights}
    tokens = target.tokenizer.encode("The capital of France is")
    drafted = []
    for drafter in (
        load_drafter(FOLDER.name, target=replace(target, weights=renamed)),
        load_drafter(FOLDER.name, target=target, tokens="text"),
    ):
        session = drafter.new_session()
        session.prefill(Prompt.of(tokens))
        draft = session.draft(tokens[-1], chain(1), SamplingParams(), TorchRng(0))
        drafted.append(draft.tree.tokens)
    assert drafted[0] == drafted[1]


def test_it_is_small_and_says_where_it_comes_from() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MOST_BYTES
    run = json.loads((FOLDER / "provenance.json").read_text())
    assert run["standing_alone"]["embeddings_of"] == DEFAULT_MODEL
    names = []
    while run is not None:
        names.append(run["recipe"]["name"])
        (stage,) = [each for each in run["stages"] if each["name"] == "distil"]
        best = max(each["judgement"]["tokens_per_step"] for each in stage["evaluations"])
        assert best > 1.5
        assert stage["num_answer_tokens"] > 0
        run = run.get("trained_before")
    assert names[-1] == FOLDER.name
    assert json.loads((FOLDER / "config.json").read_text())["dtype"] == "float16"
