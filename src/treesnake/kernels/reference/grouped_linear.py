"""Products of rounded activations with grouped weights: what kernels must give, to the bit.

Activations are rounded to 8 bits, one scale for each row and group of 32 inputs. Products within a
group are sums of integers and exact. The groups' sums are added in their order, each with one
rounding. llama.cpp rounds activations in the same manner for its quantised formats.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int8

from treesnake.kernels.grouped_weight import GROUP, LARGEST_BYTE, GroupedWeight


@dataclass(frozen=True, eq=False)
class RoundedRows:
    """Activations in 8 bits; `scales` is what the integers of a group are multiplied with."""

    values: Int8[np.ndarray, "rows inputs"]
    scales: Float[np.ndarray, "rows groups"]


def round_rows(x: Float[np.ndarray, "rows inputs"]) -> RoundedRows:
    """Rounds to nearest even, so that the largest magnitude of a group becomes 127.

    Groups whose scale would be no normal number become zeros. Groups with a value that is no finite
    number get a scale that is none.
    """
    rows, inputs = x.shape
    assert inputs % GROUP == 0, "inputs are whole groups"
    groups = x.reshape(rows, -1, GROUP)
    peaks = np.abs(groups).max(axis=2)  # NaN, if there is one
    factor = np.float32(1 / LARGEST_BYTE)
    scales = peaks * factor
    is_tiny = scales < np.finfo(np.float32).tiny
    scales[is_tiny] = 0
    with np.errstate(all="ignore"):
        inverses = np.where(is_tiny | ~np.isfinite(scales), np.float32(0), LARGEST_BYTE / peaks)
        values = np.nan_to_num(np.rint(groups * inverses.astype(np.float32)[:, :, None]))
    return RoundedRows(values.astype(np.int8).reshape(rows, inputs), scales)


def grouped_linear(x: RoundedRows, weight: GroupedWeight) -> Float[np.ndarray, "rows outputs"]:
    """Multiplies rounded rows with a grouped weight.

    For one group after the other:
    total = fma(integer sum, weight scale * activation scale, total), then, if there are minimums,
    total = fma(minimum, activation scale * sum of the activations' integers, total).
    Two groups of 16 lie in one of the activations' groups, and have no minimums.
    """
    rows, inputs = x.values.shape
    outputs, size = len(weight), weight.group_size
    activations = x.values.reshape(rows, -1, size).astype(np.int32)
    values = weight.values.reshape(outputs, -1, size).astype(np.int32)
    total = np.zeros((rows, outputs), np.float32)
    for group in range(inputs // size):
        activation_scale = x.scales[:, group * size // GROUP, None]
        products = (activations[:, group] @ values[:, group].T).astype(np.float32)
        scale = weight.scales[:, group].astype(np.float32) * activation_scale
        total = fused_multiply_add(products, scale, total)
        if weight.minimums is not None:
            minimum = weight.minimums[:, group].astype(np.float32)
            sums = activations[:, group].sum(axis=1, dtype=np.int32)[:, None]
            total = fused_multiply_add(minimum, activation_scale * sums.astype(np.float32), total)
    return total


def fused_multiply_add(
    x: Float[np.ndarray, "*axes"], y: Float[np.ndarray, "*axes"], z: Float[np.ndarray, "*axes"]
) -> Float[np.ndarray, "*axes"]:
    """Returns x * y + z with one rounding.

    A float64 holds the product. Their sum is rounded to odd there, and then rounds to float32 as
    the exact sum does (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums").
    """
    product, addend = x.astype(np.float64) * y, z.astype(np.float64)
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)
    is_even = total.view(np.int64) % 2 == 0
    towards = np.where(error > 0, np.inf, -np.inf)
    odd = np.where((error != 0) & is_even, np.nextafter(total, towards), total)
    return odd.astype(np.float32)
