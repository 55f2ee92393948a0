"""The table of sites, and the error for a rule that matches nothing.

The rows of a plan say where sites are and how often they run. The jaxpr itself is read
only to suggest names that a rule could match.
"""

from collections.abc import Iterator
from difflib import get_close_matches

from jaxdrop.planting.candidates import names_of
from jaxdrop.planting.groups import Block, Surroundings
from jaxdrop.planting.jaxprs import AnyJaxpr
from jaxdrop.planting.plan import Plan
from jaxdrop.planting.rules import Candidate, Matcher, Rules
from jaxdrop.planting.table import SiteTable, merged

LISTED = (Matcher("site", "*"), Matcher("checkpoint_name", "*"))
"""What the table lists even if no rule matches it: what was named on purpose."""
_UNMARKED = ("named_scope", "jit", "function", "primitive")
_SHOWN = 8  # names in a message, so that it fits on a screen
_SIMILAR = 0.3  # of 1; low, since a wrong suggestion does no harm


def table_of(jaxpr: AnyJaxpr, plan: Plan) -> SiteTable:
    """The table of the sites of a plan. Sites that are alike share a row."""
    rows = merged(plan.rows)
    return SiteTable(rows, {kind: known_names(jaxpr, kind) for kind in _UNMARKED if not rows})


def refuse_unmatched(jaxpr: AnyJaxpr, plan: Plan, rules: Rules) -> None:
    """Raises an error if a rule matches nothing, with names that it may have meant."""
    used = {site.match.matcher for site in plan.sites}
    for matcher in rules.matchers:
        if matcher in used:
            continue
        names = known_names(jaxpr, matcher.kind)
        # The names exist, but none of them names a site: the values may be integers, for example.
        if any(matcher.matches(Candidate(matcher.kind, name)) for name in names):
            alone = len(rules.matchers) == 1
            reason = "" if alone else ", or an earlier rule or one around it takes it"
            raise KeyError(
                f"{rules.caller}: the rule {matcher.as_written!r} is never used: what it matches is"
                f" not floating{reason}."
            )
        near = get_close_matches(matcher.pattern, names, _SHOWN, _SIMILAR) or names[:_SHOWN]
        more = f" and {len(names) - len(near)} more" if len(names) > len(near) else ""
        known = f"there are {', '.join(map(repr, near))}{more}" if names else "there is none"
        raise KeyError(f"{rules.caller}: no {matcher.kind} matches {matcher.pattern!r}; {known}.")


def known_names(jaxpr: AnyJaxpr, kind: str) -> list[str]:
    """All names of a kind, at any depth, in order."""
    return sorted(set(_names(Block(jaxpr, Surroundings()), kind)))


def _names(block: Block, kind: str) -> Iterator[str]:
    for equation in block.equations:
        yield from names_of(equation, block.around, kind)
        # The matcher makes the surroundings keep the scopes, if names are paths of scopes.
        inside = block.around.inside(equation, [Matcher(kind, "*")])
        for jaxprs in equation.bodies.values():
            for jaxpr in jaxprs:
                yield from _names(Block(jaxpr, inside), kind)
