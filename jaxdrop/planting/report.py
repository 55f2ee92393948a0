"""The table of sites, and the error for a rule that matches nothing.

The rows of a plan say where sites are and how often they run. The jaxpr itself is read
only to suggest names that a rule could match.
"""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from jaxdrop.planting.candidates import names_of, path_of
from jaxdrop.planting.groups import Block, Surroundings
from jaxdrop.planting.jaxprs import AnyJaxpr
from jaxdrop.planting.matchers import GROUPED, Candidate, Matcher, Named, named_in, negated_in
from jaxdrop.planting.plan import Plan
from jaxdrop.planting.rules import Rule, Rules
from jaxdrop.planting.table import SiteTable, merged
from jaxdrop.planting.unmarked import unmarked_rows

LISTED = (Named("site", "*"), Named("checkpoint_name", "*"))
"""What the table lists even if no rule matches it: what was named on purpose."""
_SHOWN = 8  # names in a message, so that it fits on a screen
_SIMILAR = 0.3  # of 1; low, since a wrong suggestion does no harm


def table_of(jaxpr: AnyJaxpr, plan: Plan, *, unmarked: bool) -> SiteTable:
    """The table of the sites of a plan, with what nobody marked or without.

    Sites that are alike share a row.
    """
    others = unmarked_rows(Block(jaxpr, Surroundings())) if unmarked else ()
    return SiteTable(merged(plan.rows), others)


def refuse_unmatched(jaxpr: AnyJaxpr, plan: Plan, rules: Rules) -> None:
    """Raises an error if a rule matches nothing, with names that it may have meant."""
    used = {site.match.place for site in plan.sites}
    for place, (matcher, rule) in enumerate(rules.pairs):
        # Two rules of a list may have equal matchers, of which the first takes all.
        if place not in used and (rule or matcher not in plan.excluded):
            named = _nameless(jaxpr, named_in(matcher))
            unused = _never_used(matcher, rule, rules)
            raise KeyError(f"{rules.caller}: {_no_such_name(jaxpr, named[0]) if named else unused}")
        # A misspelled name would let the rule drop what it was meant to leave alone.
        if named := _nameless(jaxpr, negated_in(matcher)):
            raise KeyError(f"{rules.caller}: {_no_such_name(jaxpr, named[0])}")


def _nameless(jaxpr: AnyJaxpr, patterns: Sequence[Named]) -> list[Named]:
    """The patterns that fit no name."""
    names = {kind: known_names(jaxpr, kind) for kind in {named.kind for named in patterns}}
    return [
        named
        for named in patterns
        if not any(named.matches(Candidate(named.kind, name)) for name in names[named.kind])
    ]


def _no_such_name(jaxpr: AnyJaxpr, named: Named) -> str:
    names = known_names(jaxpr, named.kind)
    near = get_close_matches(named.pattern, names, _SHOWN, _SIMILAR) or names[:_SHOWN]
    more = f" and {len(names) - len(near)} more" if len(names) > len(near) else ""
    known = f"there are {', '.join(map(repr, near))}{more}" if names else "there is none"
    others = [Named(kind, named.pattern) for kind in ("checkpoint_name", *GROUPED)]
    fits = [other for other in others if not _nameless(jaxpr, [other])]
    hint = f" {fits[0]!r} matches a {fits[0].kind}." if named.kind == "site" and fits else ""
    return f"no {named.kind} matches {named.pattern!r}; {known}.{hint}"


def _never_used(matcher: Matcher, rule: Rule | None, rules: Rules) -> str:
    what = f"the rule {matcher.as_written!r} is never used"
    if rule is None:
        return f"{what}: it leaves alone what no other rule matches."
    # The names exist, but none of them names a site: the values may be integers, for example.
    alone = "" if len(rules.pairs) == 1 else ", or an earlier rule or one around it takes it"
    if not isinstance(matcher, Named):
        return f"{what}: no floating value fulfils all of it{alone}."
    if matcher.kind in GROUPED:
        return f"{what}: no floating value leaves what it matches{alone}."
    return f"{what}: what it matches is not floating{alone}."


def known_names(jaxpr: AnyJaxpr, kind: str) -> list[str]:
    """All names of a kind, at any depth, in order."""
    return sorted(set(_names(Block(jaxpr, Surroundings()), kind)))


def _names(block: Block, kind: str) -> Iterator[str]:
    for equation in block.equations:
        yield from (name + path_of(equation) for name in names_of(equation, block.around, kind))
        # The matcher makes the surroundings keep the scopes, if names are paths of scopes.
        inside = block.around.inside(equation, [Named(kind, "*")])
        for jaxprs in equation.bodies.values():
            for jaxpr in jaxprs:
                yield from _names(Block(jaxpr, inside), kind)
