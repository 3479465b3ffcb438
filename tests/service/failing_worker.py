"""`selector-server` whose second process can't score for the run that is called `bad`."""

from selector_server.__main__ import main
from selector_server.scale_out.worker import Worker

_score = Worker._score


def score(self, command):
    if self._engines[command["engine"]][1].name == "bad":
        raise ValueError("no luck")
    return _score(self, command)


Worker._score = score

if __name__ == "__main__":
    main()
