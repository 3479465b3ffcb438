"""Data and models made from nothing, for the demo, the benchmarks and the tests: no network, no download."""
