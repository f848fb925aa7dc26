"""What training carries from step to step; the step's number is the loop's own."""

from typing import Any

import flax.struct


@flax.struct.dataclass
class TrainState:
    """Trees by name: `params` and `ema` by network, `optimizer` by phase, `state` the objective's own."""

    params: Any
    optimizer: Any
    ema: Any
    state: Any

    def trees(self) -> dict[str, Any]:
        """The state as a plain dictionary, as checkpoints hold it."""
        return {'params': self.params, 'optimizer': self.optimizer, 'ema': self.ema, 'state': self.state}
