"""Planting: drops put into functions that were written without them.

A planted function is traced to a jaxpr, planned and interpreted. An equation goes one
way through these files, which are best read in this order:

- `mark`: what `site` leaves in the jaxpr;
- `keys`: which key each run of a site gets;
- `tracing`: from a function to a jaxpr;
- `rules`, `match`: the names of values that a rule matches;
- `equations`, `groups`, `candidates`: which values of a jaxpr are sites;
- `drops`: how a value is dropped, and its derivative;
- `plan`: the interpreter;
- `steps`: the steps of a plan between calls;
- `calls`, `derivatives`: equations with bodies, one rule and one line of a table each;
- `planner`: from a jaxpr and rules to a plan;
- `table`, `report`: what `sites` prints, and suggestions;
- `plant`: the two public functions.

`jaxprs` and `options` hold what differs between versions of JAX.
"""

from jaxdrop.planting import match as match
from jaxdrop.planting.keys import site_key as site_key
from jaxdrop.planting.mark import site as site
from jaxdrop.planting.plant import plant as plant, sites as sites
from jaxdrop.planting.rules import Rule as Rule
from jaxdrop.planting.table import SiteRow as SiteRow, SiteTable as SiteTable
