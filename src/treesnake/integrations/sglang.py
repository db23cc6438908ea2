"""Trees of treesnake in SGLang, verified by its own kernels for token trees.

    python -m sglang.launch_server --model-path MODEL --speculative-algorithm TREESNAKE

SGLang finds this plug-in by its entry point. For its n-gram speculation SGLang verifies trees of
any form; the worker is that one, with a drafter's trees in the place of its corpus. Sampled text is
exact on CUDA, so that other devices are refused. Written from the contract of SGLang 0.5.23.
"""

from typing import Any

from sglang.srt.managers.overlap_utils import FutureMap
from sglang.srt.runtime_context import get_device, get_parallel, get_schedule, get_spec
from sglang.srt.speculative.ngram_worker import NGRAMWorker
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.speculative.spec_registry import CustomSpecAlgo

from treesnake.drafters.load import AUTO
from treesnake.integrations.batch_drafts import BatchDrafts, load_model_drafter
from treesnake.integrations.sglang_trees import Trees
from treesnake.shape import BestFirst

NAME = "TREESNAKE"

NUM_NODES, WIDTH, DEPTH = 16, 4, 6
"""A tree with its anchor: nodes in all, children of a node at most, levels."""

MOST_RUNNING = 48
"""Texts at once where nobody says, as for SGLang's n-gram speculation."""

WHOLE_TEXT = 1 << 40
"""SGLang hands its corpus the end of each text, of so many tokens."""


class Algorithm(CustomSpecAlgo):
    """How SGLang treats the worker: as its n-gram speculation, which has no state of its own."""

    def is_ngram(self) -> bool:
        """Tells that trees are verified as those of n-grams."""
        return True

    def has_draft_kv(self) -> bool:
        """Tells that drafting takes no rows of SGLang's cache."""
        return False

    def carries_draft_hidden_states(self) -> bool:
        """Tells that there are none; plain registrations lack this answer."""
        return False

    def need_topk(self) -> bool:
        """Tells that there are no draft probabilities; plain registrations lack this answer."""
        return False

    def create_future_map(
        self,
        device: Any,
        req_to_token_pool: Any,
        needs_cpu_seq_lens: bool = True,
        needs_confidence_relay: bool = False,
    ) -> Any:
        """Returns what hands values on between steps; plain registrations lack this."""
        return FutureMap(
            device, self, req_to_token_pool, needs_cpu_seq_lens, needs_confidence_relay
        )

    def handle_server_args(self, server_args: Any) -> None:
        """Sets what is left open, and refuses what would not be exact.

        Raises:
            ValueError: with the reason.
        """
        if server_args.device != "cuda":
            raise ValueError(
                f"{NAME} needs CUDA, got device {server_args.device!r}: on others SGLang commits "
                "the most probable token of a tree, also where it should sample"
            )
        thresholds = (
            server_args.speculative_accept_threshold_single,
            server_args.speculative_accept_threshold_acc,
        )
        if thresholds != (1.0, 1.0):
            raise ValueError(
                f"{NAME} is exact with acceptance thresholds of 1 only, got {thresholds}; leave "
                "--speculative-accept-threshold-single and -acc out"
            )
        if server_args.speculative_ngram_external_corpus_path is not None:
            raise ValueError(
                f"{NAME} reads no corpus; leave --speculative-ngram-external-corpus-path out"
            )
        defaults = {
            "speculative_num_draft_tokens": NUM_NODES,
            "speculative_eagle_topk": WIDTH,
            "speculative_num_steps": DEPTH,
            "max_running_requests": MOST_RUNNING,
        }
        for name, default in defaults.items():
            if getattr(server_args, name) is None:
                setattr(server_args, name, default)
        server_args.enable_mixed_chunk = False
        paged = server_args.page_size is not None and server_args.page_size > 1
        if paged and server_args.attention_backend != "flashinfer":
            raise ValueError(
                f"{NAME} needs --page-size 1, or --attention-backend flashinfer: SGLang verifies "
                "trees on pages with no other"
            )


class Worker(NGRAMWorker):
    """SGLang's worker for n-grams, which takes trees from a drafter.

    Its own constructor would compile a corpus, so what that sets is set here.
    """

    def __init__(self, server_args: Any, gpu_id: int, nccl_port: int, target_worker: Any) -> None:
        super(NGRAMWorker, self).__init__()
        spec, schedule = get_spec(), get_schedule()
        self.server_args = server_args
        self.enable_overlap = not schedule.disable_overlap_schedule
        self._target_worker = target_worker
        self.model_runner = target_worker.model_runner
        self.page_size = schedule.page_size
        self.draft_token_num = spec.speculative_num_draft_tokens
        self.speculative_num_draft_tokens = spec.speculative_num_draft_tokens
        self.max_trie_depth = WHOLE_TEXT
        self.topk = spec.speculative_eagle_topk
        self.speculative_num_steps = spec.speculative_num_steps
        self.device = get_device().device
        self.adaptive_controller: Any = None
        self.grammar_tree_host: Any = None
        self._prev_decode_rids: set[str] = set()
        shape = BestFirst(self.topk, self.speculative_num_steps, self.draft_token_num - 1)
        drafts = None
        group = get_parallel().tp_group
        if group.rank_in_group == 0:
            drafter = server_args.speculative_draft_model_path or AUTO
            model = load_model_drafter(server_args.model_path, drafter, str(self.device))
            drafts = BatchDrafts(model, 2 * (server_args.max_running_requests or MOST_RUNNING))
        self.ngram_corpus = Trees(drafts, shape, group)

    def add_external_corpus(self, corpus_id: str, token_chunks: list[list[int]]) -> int:
        """Refuses a corpus; SGLang hands the reason on to whoever sent it."""
        raise ValueError(f"{NAME} drafts with a model and reads no corpus")


def register() -> None:
    """Makes the algorithm known to SGLang, which calls this before it reads its arguments."""
    decorator = SpeculativeAlgorithm.register(NAME, supports_overlap=True, spec_class=Algorithm)
    decorator(_worker)


def _worker(server_args: Any) -> Any:
    return Worker
