"""`selector-server` with a random pause before every selection and every push; the seed is SLOW_SEED."""

import os
import random
import time

from selector_server.engine import SelectionEngine
from selector_server.journal import Journal

_random = random.Random(int(os.environ["SLOW_SEED"]))
_select, _write_weights = SelectionEngine.select, Journal.write_weights


def slow_select(self, *arguments):
    time.sleep(_random.uniform(0.0, 0.15))
    return _select(self, *arguments)


def slow_write_weights(self, version, sha256, payload):
    time.sleep(_random.uniform(0.0, 0.15))
    _write_weights(self, version, sha256, payload)


SelectionEngine.select, Journal.write_weights = slow_select, slow_write_weights

if __name__ == "__main__":
    from selector_server.__main__ import main

    main()
