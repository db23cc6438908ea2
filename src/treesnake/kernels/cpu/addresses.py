"""Arrays by their address.

A call that runs several texts is given the arrays of each by address, so that a function has one
compiled type however many texts there are. Whoever gives an address keeps the array alive.
"""

from typing import Any

from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from treesnake.kernels.cpu import simd


def rows_of(element: types.Type) -> Any:
    """Builds the intrinsic that returns the rows of such elements at an address."""

    @intrinsic
    def rows_at(typing_context, address, num_rows, width):
        position = types.intp
        return types.Array(element, 2, "C")(position, position, position), _view

    return rows_at


@intrinsic
def rows_like(typing_context, address, num_rows, width, like):
    """Returns rows at an address, of the dtype that another array has."""

    def generate(context, builder, signature, arguments):
        return _view(context, builder, signature, arguments[:3])

    position = types.intp
    return like(position, position, position, like), generate


def _view(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Builds the view of rows that lie one after the other."""
    address, num_rows, width = arguments
    kind = signature.return_type
    size = simd.index(context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    array = context.make_array(kind)(context, builder)
    populate_array(
        array,
        data=builder.inttoptr(address, array.data.type),
        shape=[num_rows, width],
        strides=[builder.mul(width, size), size],
        itemsize=size,
        meminfo=None,
    )
    return array._getvalue()
