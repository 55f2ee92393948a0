"""Planting: drops put into functions that were written without them.

A planted function is traced to a jaxpr (`tracing`), planned and interpreted. The
files, in the order in which to read them:

- `mark`: what `site` leaves in the jaxpr;
- `keys`: which key each run of a site gets;
- `rules`, `groups`, `candidates`: which values are sites, and what is done there;
- `drops`: how a value is dropped, and its derivative;
- `plan`: the interpreter;
- `calls`, `derivatives`: equations with a body, one rule each;
- `planner`: from a jaxpr and rules to a plan;
- `report`: the table of `sites`, and suggestions.
"""

from jaxdrop.planting import match as match
from jaxdrop.planting.keys import site_key as site_key
from jaxdrop.planting.mark import site as site
from jaxdrop.planting.plant import plant as plant, sites as sites
from jaxdrop.planting.report import SiteRow as SiteRow, SiteTable as SiteTable
from jaxdrop.planting.rules import Rule as Rule
