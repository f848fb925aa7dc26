"""Offline searches over a trained run, by `--mode=search`: `build(...)` makes what the job runs.

A search has a `kind`, `found_for(recipe)`, what its result holds for besides the networks, and
`parts(program, params, knobs, first)`, its result's arrays, from row `first` on (see artifact.py).
"""
