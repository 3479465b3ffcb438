"""Features of rows → the rows of the sub-batch and what each weighs."""

from selector_server.picks.medoids import facility_location, represented
from selector_server.picks.record import Features, Picks

__all__ = ["Features", "Picks", "facility_location", "represented"]
