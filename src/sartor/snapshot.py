# SPDX-License-Identifier: Apache-2.0
"""The state of a strategy that is saved instead of replayed, as bytes beside the trials that made it."""

from __future__ import annotations

import json

from sartor.protocols import Stateful


def packed(told: int, strategy: Stateful) -> bytes:
    """Return the state after `told` tells as JSON, preceded by its length in 8 bytes, and then safetensors.

    Raises TypeError for a state that holds anything but tensors and plain values.
    """
    import safetensors.torch

    from sartor.checkpoint import flatten

    tensors, tree = flatten({"told": told, "state": strategy.state_dict()})
    text = json.dumps(tree, allow_nan=False).encode()
    return len(text).to_bytes(8, "little") + text + safetensors.torch.save(tensors)


def restore(snapshot: bytes, strategy: Stateful) -> int:
    """Restore the strategy and return how many trials it was told; only tensors and plain values are read.

    Raises ValueError for bytes that `packed` did not write.
    """
    import safetensors.torch

    from sartor.checkpoint import unflatten

    try:
        end = 8 + int.from_bytes(snapshot[:8], "little")
        read = unflatten(safetensors.torch.load(snapshot[end:]), json.loads(snapshot[8:end]))
        told, state = int(read["told"]), read["state"]
    except (safetensors.SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"the state of the strategy in the log cannot be read: {error}") from None
    strategy.load_state_dict(state)
    return told
