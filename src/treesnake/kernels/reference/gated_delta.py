"""The gated delta rule of DeltaNet hybrids: over a text in chunks, and over a token tree.

Each head has a state of `key_dim` times `value_dim` numbers. A token lets it decay, compares what
the state says of its key with its value, and writes a share of the difference:

    S_t = exp(a_t) S_p(t) + k_t u_t^T      u_t = beta_t (v_t - (exp(a_t) S_p(t))^T k_t)
    o_t = S_t^T q_t

where p(t) is the token before t, or its parent in a tree. With G_t the sum of a along the path of
t, all u of a tree solve one triangular system a head, and no state but the committed one is made:

    u_t + beta_t sum over strict ancestors s of (k_t . exp(G_t - G_s) k_s) u_s
        = beta_t (v_t - (exp(G_t) S)^T k_t)

Glossary (paper symbol, variable):
    q, k, v     query, key, value   as the rule reads them: after norms and scaling
    alpha       log_decay           log of the decay over a step, at most 0: one number a head, or
                                    one for each key dimension (Kimi)
    beta        beta                the share of the difference that is written
    S           state               `committed` before a tree
    u           writes              what each token writes along its key

States, decays and writes are float32 whatever the inputs are.
Source: Yang, Kautz and Hatamizadeh 2025 (Gated Delta Networks); the tree form is ours.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

CHUNK = 64
"""Tokens whose pairwise weights exist at once."""


def step(
    query: Float[Tensor, "*batch heads key_dim"],
    key: Float[Tensor, "*batch heads key_dim"],
    value: Float[Tensor, "*batch heads value_dim"],
    log_decay: Float[Tensor, "*batch heads decays"],
    beta: Float[Tensor, "*batch heads"],
    state: Float[Tensor, "*batch heads key_dim value_dim"],
) -> tuple[
    Float[Tensor, "*batch heads value_dim"], Float[Tensor, "*batch heads key_dim value_dim"]
]:
    """Returns the output of one token and the state after it: the definition, word for word."""
    key, query = key.float(), query.float()
    state = log_decay.float().exp()[..., None] * state
    known = (state * key[..., None]).sum(-2)
    write = beta.float()[..., None] * (value.float() - known)
    state = state + key[..., None] * write[..., None, :]
    return (state * query[..., None]).sum(-2).to(value.dtype), state


def scan(
    query: Float[Tensor, "tokens heads key_dim"],
    key: Float[Tensor, "tokens heads key_dim"],
    value: Float[Tensor, "tokens heads value_dim"],
    log_decay: Float[Tensor, "tokens heads decays"],
    beta: Float[Tensor, "tokens heads"],
    state: Float[Tensor, "heads key_dim value_dim"],
) -> tuple[Float[Tensor, "tokens heads value_dim"], Float[Tensor, "heads key_dim value_dim"]]:
    """Returns the outputs of a text and the state after it: chunk by chunk, each chunk a chain."""
    outputs = []
    for start in range(0, len(query), CHUNK):
        part = slice(start, start + CHUNK)
        given = key[part], value[part], log_decay[part], beta[part]
        outputs.append(extend_sums(query[part], *given, _chain(key[part]), state))
        state = commit_sums(*given, state)
    return torch.cat(outputs), state


def extend_sums(
    query: Float[Tensor, "new heads key_dim"],
    key: Float[Tensor, "nodes heads key_dim"],
    value: Float[Tensor, "nodes heads value_dim"],
    log_decay: Float[Tensor, "nodes heads decays"],
    beta: Float[Tensor, "nodes heads"],
    ancestor_mask: Bool[Tensor, "nodes nodes"],
    committed: Float[Tensor, "heads key_dim value_dim"],
) -> Float[Tensor, "new heads value_dim"]:
    """Runs the newest nodes of a tree from the inputs of all nodes; no state is made.

    `query` is that of the new nodes, which are the last.
    """
    passed, decays = _decays(log_decay, ancestor_mask)
    writes = _writes(key, value, beta, passed, decays, committed)
    num_new, query = len(query), query.float()
    weights = _weights(query, key.float(), decays[-num_new:])
    read = torch.einsum("thk,hkv->thv", query * passed[-num_new:].exp(), committed)
    return (read + torch.einsum("tsh,shv->thv", weights, writes)).to(value.dtype)


def commit_sums(
    key: Float[Tensor, "path heads key_dim"],
    value: Float[Tensor, "path heads value_dim"],
    log_decay: Float[Tensor, "path heads decays"],
    beta: Float[Tensor, "path heads"],
    committed: Float[Tensor, "heads key_dim value_dim"],
) -> Float[Tensor, "heads key_dim value_dim"]:
    """Returns the committed state moved along a path, in closed form."""
    passed, decays = _decays(log_decay, _chain(key))
    writes = _writes(key, value, beta, passed, decays, committed)
    written = torch.einsum("shk,shv->hkv", key.float() * decays[-1], writes)
    return passed[-1].exp()[..., None] * committed + written


def _chain(key: Float[Tensor, "path heads key_dim"]) -> Bool[Tensor, "path path"]:
    return torch.ones(len(key), len(key), dtype=torch.bool, device=key.device).tril()


def _decays(
    log_decay: Float[Tensor, "nodes heads decays"], ancestor_mask: Bool[Tensor, "nodes nodes"]
) -> tuple[Float[Tensor, "nodes heads decays"], Float[Tensor, "nodes nodes heads decays"]]:
    """Returns the log decay from the text to each node, and the decay between all pairs.

    Gaps to nodes on other branches mean nothing, and may overflow: mask before the exp.
    """
    passed = torch.einsum("ts,shd->thd", ancestor_mask.float(), log_decay.float())
    gaps = (passed[:, None] - passed).masked_fill(~ancestor_mask[..., None, None], float("-inf"))
    return passed, gaps.exp()


def _writes(
    key: Float[Tensor, "nodes heads key_dim"],
    value: Float[Tensor, "nodes heads value_dim"],
    beta: Float[Tensor, "nodes heads"],
    passed: Float[Tensor, "nodes heads decays"],
    decays: Float[Tensor, "nodes nodes heads decays"],
    committed: Float[Tensor, "heads key_dim value_dim"],
) -> Float[Tensor, "nodes heads value_dim"]:
    """Returns what each node writes along its key: one triangular solve a head."""
    key, beta = key.float(), beta.float()
    known = torch.einsum("thk,hkv->thv", key * passed.exp(), committed)
    wanted = beta[..., None] * (value.float() - known)
    system = beta[:, None] * _weights(key, key, decays)
    solved = torch.linalg.solve_triangular(
        system.permute(2, 0, 1), wanted.transpose(0, 1), upper=False, unitriangular=True
    )
    return solved.transpose(0, 1)


def _weights(
    reading: Float[Tensor, "new heads key_dim"],
    key: Float[Tensor, "nodes heads key_dim"],
    decays: Float[Tensor, "new nodes heads decays"],
) -> Float[Tensor, "new nodes heads"]:
    """Returns how much of what each node writes another reads."""
    if decays.shape[-1] == 1:
        return torch.einsum("thk,shk->tsh", reading, key) * decays[..., 0]
    return torch.einsum("thk,shk,tshk->tsh", reading, key, decays)
