"""Planting: drops put into functions that were written without them.

A planted function is traced to a jaxpr, planned and interpreted. The files, in
the order in which to read them: `mark` (what `site` leaves in the jaxpr), `keys`
(which key each run of a site gets), `rules` and `candidates` (which values are
sites), `drops` (what happens at a site), `plan` (the interpreter), `calls` and `derivatives`
(equations with a body), `planner` (from a jaxpr to a plan) and `report`.
"""
