"""Targets by name."""

from treesnake.loading.checkpoint import DEFAULT_MODEL
from treesnake.loading.networks import EngineName, LoadedNetwork, load_attention_network
from treesnake.loading.pretrained import DeviceMap, DtypeName
from treesnake.targets.network import NetworkTargetModel


def load_target(
    name: str = DEFAULT_MODEL,
    *,
    dtype: DtypeName = "auto",
    device: str = "auto",
    engine: EngineName = "auto",
    device_map: DeviceMap | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[NetworkTargetModel, LoadedNetwork]:
    """Loads a target.

    Options and errors are those of `treesnake.loading.networks.load_attention_network`.

    Returns:
        What makes sessions, and what is known of the weights behind it.
    """
    loaded = load_attention_network(
        name,
        dtype=dtype,
        device=device,
        engine=engine,
        device_map=device_map,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    return NetworkTargetModel(loaded.network), loaded
