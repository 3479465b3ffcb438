"""Features of rows → the rows of the sub-batch and what each weighs."""

from selector_server.picks.medoids import facility_location
from selector_server.picks.record import Picks

__all__ = ["Picks", "facility_location"]
