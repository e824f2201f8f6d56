"""Timings of the parts against straightforward code, side by side: `python -m benchmarks.<name>`.

Each renders its own data. What they printed, where and when: docs/performance.md.
"""
