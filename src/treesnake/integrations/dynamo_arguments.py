"""The command line of the worker for NVIDIA Dynamo, and the folder of the model that it names."""

from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from treesnake.integrations.model_folders import save_description
from treesnake.loading.architecture import Architecture
from treesnake.loading.checkpoint import find_checkpoint
from treesnake.loading.options import LoadOptions


def new_parser() -> ArgumentParser:
    """Returns what reads the command line."""
    parser = ArgumentParser("python -m treesnake.integrations.dynamo")
    parser.add_argument("--model", default="smollm2", help="a name at the hub, a folder, a file")
    parser.add_argument("--served-model-name", help="what clients call it")
    parser.add_argument("--drafter", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--max-num-seqs", type=int, default=8)
    parser.add_argument("--max-queued", type=int, default=64)
    parser.add_argument("--cache-bytes", type=int, default=512 << 20)
    parser.add_argument("--namespace", default="dynamo")
    parser.add_argument("--discovery-backend", default="etcd", help="file needs no other service")
    parser.add_argument("--request-plane", default="tcp")
    parser.add_argument("--event-plane", default="zmq")
    return parser


def load_options(told: Namespace) -> LoadOptions:
    """Returns how the target is loaded."""
    return LoadOptions(told.dtype, told.device, trust_remote_code=told.trust_remote_code)


def folder_of(told: Namespace, files: ExitStack) -> str:
    """Returns a folder with config and tokenizer of the model, made now if there is none."""
    checkpoint = find_checkpoint(told.model, load_options(told))
    if checkpoint.found.architecture is Architecture.TRANSFORMERS:
        return str(checkpoint.path)
    folder = files.enter_context(TemporaryDirectory(prefix="treesnake-"))
    save_description(checkpoint, Path(folder))
    return folder
