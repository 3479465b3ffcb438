"""`selector-server` whose second process can't score for the run that is called `bad`."""

import os

from selector_server.__main__ import main
from selector_server.scale_out.engine import ShareEngine

_score_batches = ShareEngine.score_batches


def score_batches(self, batches, probes):
    if self._run == "bad" and os.environ["RANK"] == "1":
        raise ValueError("no luck")
    return _score_batches(self, batches, probes)


ShareEngine.score_batches = score_batches

if __name__ == "__main__":
    main()
