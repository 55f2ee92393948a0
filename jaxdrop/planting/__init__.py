"""Planting: puts drops into functions that were written without them.

A planted function is traced to a jaxpr, and the jaxpr is planned and interpreted. Read
the files in the order in which they handle an equation:

- `mark`: the equations that `site` puts into the jaxpr;
- `keys`: which key each run of a site gets;
- `tracing`: from a function to a jaxpr;
- `rules`: the names of values that a rule matches, as the functions of `jaxdrop.match` make them;
- `equations`, `reach`, `outputs`, `groups`, `candidates`: which values of a jaxpr are sites;
- `drops`: how a value is dropped, and its derivative;
- `plan`: the interpreter;
- `steps`: the steps of a plan, except calls;
- `calls`, `derivatives`: equations with bodies; each has a rule and a line in a table;
- `planner`: from a jaxpr and rules to a plan;
- `table`, `report`: the table that `sites` returns, and suggestions in errors;
- `plant`: the two public functions.

`jaxprs`, `equations` and `options` have what differs between versions of JAX.
"""

from jaxdrop.planting.keys import site_key as site_key
from jaxdrop.planting.mark import site as site
from jaxdrop.planting.plant import plant as plant, sites as sites
from jaxdrop.planting.rules import Rule as Rule
from jaxdrop.planting.table import SiteRow as SiteRow, SiteTable as SiteTable
