"""Benchmarks: ratios are taken within one run on one machine, the contestants in turn."""
