"""Upweight beside other tools on the same problems: time, memory, error. `make bench` runs it and writes docs/benchmarks.md."""
