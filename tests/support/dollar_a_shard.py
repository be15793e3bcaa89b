"""A run whose cost does not depend on the speed of the machine: each shard that is done costs a dollar.

`import tests.support.dollar_a_shard` changes the driver in this process. Prices of devices must come to far less.
"""

from pipeline.commit.receipt import Receipt
from pipeline.forecast.limits import Limits

_add = Limits.add


def _add_a_dollar(self: Limits, receipt: Receipt) -> None:
    _add(self, receipt)
    self.cost += 1.0


Limits.add = _add_a_dollar  # type: ignore[method-assign]
