"""What the rules refuse: drafts for which they would not be exact."""

from treesnake.draft import Draft
from treesnake.errors import LosslessnessError
from treesnake.sampling import Distributions


def check_vocabulary(draft: Draft, target: Distributions) -> None:
    """Checks that the draft's probabilities are over the target's vocabulary.

    Raises:
        LosslessnessError: if they are not, or a row is missing.
    """
    num_nodes, vocab_size = target.logits.shape
    if num_nodes != len(draft.tree):
        raise LosslessnessError(
            f"the draft has {len(draft.tree)} nodes and the target scored {num_nodes}; "
            "score the tree of the draft that is to be accepted"
        )
    if draft.draft_probs is not None and draft.draft_probs.shape[-1] != vocab_size:
        raise LosslessnessError(
            f"draft vocabulary has {draft.draft_probs.shape[-1]} tokens, target "
            f"{vocab_size}; load the drafter with the target's tokenizer"
        )


def check_sampled_chain(draft: Draft, rule: str) -> None:
    """Checks that a draft is a chain of sampled tokens.

    Raises:
        LosslessnessError: if it has branches or tokens that were chosen without chance.
    """
    if not draft.tree.is_chain:
        raise LosslessnessError(f"{rule} is for chains; accept trees with tree_rejection")
    if not draft.is_sampled:
        raise LosslessnessError(
            f"{rule} needs tokens drawn from the drafter's distribution; accept chosen tokens with "
            "coupled"
        )


def check_drawn(probability: float, token: int) -> None:
    """Checks that a drafted token can have been drawn from what the draft says.

    Raises:
        LosslessnessError: if its probability was zero.
    """
    if not probability > 0:
        raise LosslessnessError(
            f"token {token} is drafted as sampled, yet had no probability: it was drawn twice "
            "among siblings, or not from draft_probs; draft it as chosen if chance had no part"
        )
