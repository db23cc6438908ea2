"""What a config promises of its weights, and what files hold instead."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from treesnake.errors import LoadError
from treesnake.models.weight_gate import Promise, Tie, admit, check_sizes
from treesnake.models.weights import open_weights

EMBEDDING, HEAD, NORM = "model.embed.weight", "lm_head.weight", "model.layers.0.norm.weight"
SHAPES = {EMBEDDING: (6, 4), HEAD: (6, 4), NORM: (4,)}
TIED = Promise(SHAPES, "model.", Tie(EMBEDDING, HEAD))
APART = Promise(SHAPES, "model.")


def drawn(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def without(name: str) -> dict[str, torch.Tensor]:
    return {own: tensor for own, tensor in drawn().items() if own != name}


def test_tensors_that_are_promised_come_back_as_they_are() -> None:
    admitted = admit(APART, drawn(), "here")
    assert not admitted.is_tied
    assert all(torch.equal(admitted.tensors[name], tensor) for name, tensor in drawn().items())


@pytest.mark.parametrize("missing", [EMBEDDING, HEAD])
def test_a_tie_needs_one_of_its_two_tensors(missing: str) -> None:
    admitted = admit(TIED, without(missing), "here")
    assert admitted.is_tied
    kept = HEAD if missing == EMBEDDING else EMBEDDING
    assert torch.equal(admitted.tensors[EMBEDDING], drawn()[kept])
    assert HEAD not in admitted.tensors
    with pytest.raises(LoadError, match=f"lacks 1 of the tensors .*{missing}"):
        admit(APART, without(missing), "here")


def test_two_tensors_that_differ_are_not_tied_whatever_the_config_says(tmp_path: Path) -> None:
    save_file(drawn(), tmp_path / "model.safetensors")
    for stored in (drawn(), open_weights(tmp_path)):
        admitted = admit(TIED, stored, "here")
        assert not admitted.is_tied
        assert torch.equal(admitted.tensors[HEAD], drawn()[HEAD])
        assert torch.equal(admitted.tensors[EMBEDDING], drawn()[EMBEDDING])


def test_two_tensors_that_are_equal_are_one() -> None:
    tensors = drawn()
    tensors[HEAD] = tensors[EMBEDDING].double()
    admitted = admit(TIED, tensors, "here")
    assert admitted.is_tied
    assert HEAD not in admitted.tensors


def test_files_of_the_base_class_leave_out_its_name() -> None:
    tensors = {name.removeprefix("model."): tensor for name, tensor in drawn().items()}
    assert set(admit(APART, tensors, "here").tensors) == set(SHAPES)
    with pytest.raises(LoadError, match="twice"):
        admit(APART, tensors | drawn(), "here")


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod."])
def test_names_of_a_wrapped_module_are_told(wrapper: str) -> None:
    tensors = {wrapper + name: tensor for name, tensor in drawn().items()}
    with pytest.raises(LoadError, match=f"names begin with '{wrapper}'"):
        admit(TIED, tensors, "here")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.norm.weight",
        "model.layers.0.norm.bias",
        "model.layers.0.other.weight",
        "lm_head.bias",
        "model.layers.0.norm.weight_scale",
    ],
)
def test_more_of_the_network_than_was_promised_is_refused(name: str) -> None:
    with pytest.raises(LoadError, match=f"more of its network .*{name}"):
        admit(APART, drawn() | {name: torch.zeros(4)}, "here")


@pytest.mark.parametrize(
    "name", ["unused", "mtp.head.weight", "model.layers.0.rotary_emb.inv_freq"]
)
def test_strays_are_left_out(name: str, caplog: pytest.LogCaptureFixture) -> None:
    admitted = admit(APART, drawn() | {name: torch.zeros(4, dtype=torch.uint16)}, "here")
    assert set(admitted.tensors) == set(SHAPES)
    assert name in caplog.text


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.complex64])
def test_weights_are_floating_point_numbers(dtype: torch.dtype) -> None:
    with pytest.raises(LoadError, match="no floating-point numbers"):
        admit(APART, drawn() | {NORM: torch.ones(4, dtype=dtype)}, "here")


@given(
    name=st.sampled_from(sorted(SHAPES)),
    shape=st.lists(st.integers(0, 7), max_size=3).map(tuple),
    is_tied=st.booleans(),
)
@example(name=NORM, shape=(3,), is_tied=True)
@example(name=NORM, shape=(1,), is_tied=False)
@example(name=NORM, shape=(2, 2), is_tied=False)
@example(name=EMBEDDING, shape=(4, 6), is_tied=True)
@example(name=HEAD, shape=(5, 4), is_tied=True)
@example(name=EMBEDDING, shape=(), is_tied=False)
def test_no_other_shape_comes_through(name: str, shape: tuple[int, ...], is_tied: bool) -> None:
    promise = TIED if is_tied else APART
    tensors = drawn() | {name: torch.zeros(shape)}
    if shape == SHAPES[name]:
        assert admit(promise, tensors, "here").tensors[name].shape == shape
        return
    with pytest.raises(LoadError) as caught:
        admit(promise, tensors, "here")
    assert f"{name} has shape {list(shape)}, the config promises {list(SHAPES[name])}" in str(
        caught.value
    )


@given(
    kept=st.sets(st.sampled_from(sorted(SHAPES))),
    others=st.sets(st.text(max_size=8)),
    is_tied=st.booleans(),
)
@example(kept=set(), others=set(), is_tied=True)
@example(kept={NORM}, others={""}, is_tied=True)
@example(kept={NORM, HEAD}, others={"."}, is_tied=True)
def test_any_file_is_admitted_whole_or_refused(
    kept: set[str], others: set[str], is_tied: bool
) -> None:
    stored = {name: drawn()[name] for name in kept} | {name: torch.ones(1) for name in others}
    try:
        admitted = admit(TIED if is_tied else APART, stored, "here")
    except LoadError:
        assert kept != set(SHAPES)
        return
    shapes = {name: tuple(tensor.shape) for name, tensor in admitted.tensors.items()}
    assert shapes == {k: v for k, v in SHAPES.items() if not (admitted.is_tied and k == HEAD)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 10**4}, "num_hidden_layers = 10000"),
        ({"vocab_size": 10**9}, "3 tensors of 52 numbers"),
        ({"head_dim": 10**9}, "head_dim"),
        ({"intermediate_size": [4, 10**4]}, "intermediate_size = 10000"),
        ({"text_config": {"hidden_size": 10**7}}, "hidden_size"),
    ],
)
def test_sizes_that_no_file_could_hold_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        check_sizes(fields, drawn(), "here")
    check_sizes({"num_hidden_layers": 1, "vocab_size": 6, "head_dim": None}, drawn(), "here")
