"""Proof, offline, that a journalled run selected what it says: draws, scores and picks computed again and compared."""
