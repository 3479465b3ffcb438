"""What losing nothing costs in every step: the journal, kept scores, hashes, durable weights, reports, pings, TLS.

    selector-server bench overhead --out DIR [--quick] [--config FILE]

Each round does every operation of one step as server and trainers do it, the writes on the disk of `--out`. A round's
costs, times how often a step needs each, add up to its total; what is told is the median over the rounds, and an
interval for it, as a share of a step of one second. Three kinds are kept apart: what stands in a selection's way from
its picks to the ranks; what stands in the way of the weights that it is scored with, which with staleness 1 or more the
ranks wait for only where that and the selection take longer than a step; and what runs beside. `--config` gives the
token and the TLS files that calls are made with.
"""

from selector_server.bench.overhead.command import run

__all__ = ["run"]
