"""Benchmarks: `selector-server bench NAME` prints a table of paired ratios, draws a plot and writes result.json."""
