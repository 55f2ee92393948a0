"""Small edits that a compiler accepts and a reader may overlook, for `sample.py`."""

import ast
import builtins
from collections.abc import Iterator
from dataclasses import dataclass

OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
    ast.MatMult: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_PAIRS = [
    ("all", "any"),
    ("argmax", "argmin"),
    ("ceil", "floor"),
    ("exp", "expm1"),
    ("float32", "float64"),
    ("int32", "uint32"),
    ("log", "log1p"),
    ("max", "min"),
    ("maximum", "minimum"),
    ("mean", "sum"),
    ("ones", "zeros"),
    ("ones_like", "zeros_like"),
    ("TypeError", "ValueError"),
]
NAMES = {old: new for pair in _PAIRS for old, new in (pair, pair[::-1])}


@dataclass(frozen=True)
class Edit:
    """Some characters of a file, what stands there instead, and the lines that it is about."""

    start: int
    stop: int
    text: str
    lines: range
    kind: str

    def applied(self, source: str) -> str:
        return source[: self.start] + self.text + source[self.stop :]

    def shown(self, source: str) -> str:
        """The lines that it changes, before and after."""
        first, last = source.rfind("\n", 0, self.start) + 1, source.find("\n", self.stop)
        new = source[first : self.start] + self.text + source[self.stop : last]
        return " ".join(f"{source[first:last]} => {new}".split())


def edits(source: str) -> Iterator[Edit]:
    """All edits of a module: none in annotations, docstrings, texts of messages and `strict` of
    `zip`, which never raises.
    """
    starts = _starts_of_lines(source)

    def at(line, column):
        whole = source[starts[line - 1] :].encode()
        return starts[line - 1] + len(whole[:column].decode())

    for node, statement in _code(ast.parse(source)):
        start, stop = at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)
        for kind, new in _changed(node, statement):
            text = new if isinstance(new, str) else ast.unparse(new)
            text = f"({text})" if isinstance(new, _OPERATIONS) else text
            if text != source[start:stop]:
                yield Edit(start, stop, text, range(node.lineno, node.end_lineno + 1), kind)


_OPERATIONS = ast.BinOp | ast.BoolOp | ast.Compare | ast.UnaryOp | ast.IfExp


def _starts_of_lines(source):
    found = [0]
    for line in source.splitlines(keepends=True):
        found.append(found[-1] + len(line))
    return found


def _code(node, statement=None):
    """Expressions and statements that run, each with the statement that it is part of."""
    if isinstance(node, ast.stmt):
        statement = node
    if isinstance(node, ast.JoinedStr) or _is_text_alone(node) or _names_something(node):
        return
    if isinstance(node, ast.expr | ast.stmt):
        yield node, statement
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        if isinstance(node, ast.keyword) and node.arg == "strict":
            continue
        if isinstance(node, ast.AnnAssign) and name == "target":
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _code(child, statement)


def _is_text_alone(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _names_something(node):
    """Whether a statement says only which names a module has, or names a type."""
    match node:
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return True
        case ast.Assign(value=ast.Call(func=ast.Name(id="TypeVar" | "ParamSpec" | "Primitive"))):
            return True
    return False


def _with(node, **changes):
    fields = dict(ast.iter_fields(node)) | changes
    return ast.copy_location(type(node)(**fields), node)


def _changed(node, statement):
    """What a node may turn into: kinds and nodes, or texts."""
    match node:
        case ast.BinOp() | ast.BoolOp() if type(node.op) in OPERATORS:
            yield "operator", _with(node, op=OPERATORS[type(node.op)]())
        case ast.Compare() if type(node.ops[0]) in OPERATORS:
            yield "comparison", _with(node, ops=[OPERATORS[type(node.ops[0])](), *node.ops[1:]])
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield "unary operator", node.operand
        case ast.IfExp():
            yield "condition", _with(node, body=node.orelse, orelse=node.body)
        case ast.Constant(value=bool()):
            yield "constant", repr(not node.value)
        case ast.Constant(value=int()):
            yield "constant", repr(node.value + 1)
        case ast.Constant(value=float()):
            yield "constant", repr(node.value * 1.25 or 0.25)
        case ast.Constant(value=str()) if node.value.isidentifier():
            yield "constant", repr(node.value + "_")
        case ast.Name(id=name, ctx=ast.Load()) if hasattr(builtins, NAMES.get(name, "")):
            yield "name", NAMES[name]
        case ast.Attribute(attr=name, ctx=ast.Load()) if name in NAMES:
            yield "name", _with(node, attr=NAMES[name])
        case ast.Slice(lower=lower, upper=upper) if lower and upper:
            yield "slice", _with(node, upper=None)
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.AugAssign():
            yield "statement", "pass"
        case ast.Return(value=ast.expr()) if not isinstance(node.value, ast.Constant):
            yield "statement", "return None"
    if isinstance(node, ast.Call):
        for argument in node.keywords:
            if argument.arg not in (None, "strict"):
                left = [other for other in node.keywords if other is not argument]
                yield "argument", _with(node, keywords=left)
    if isinstance(statement, ast.If | ast.While) and node is statement.test:
        yield "condition", ast.UnaryOp(op=ast.Not(), operand=node)
