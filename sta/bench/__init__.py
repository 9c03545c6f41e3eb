"""Benchmarks: what is compared is measured in one run on one machine; where it is speed, the contestants take turns."""
