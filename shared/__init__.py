"""What the selector server and the trainers share: records, wire, store, weights, timing. It imports neither."""
