"""What the operator asks of the API server, read from its code: every call on its client, by kind."""

import ast
import sys
from pathlib import Path

import finetune_operator
from finetune_operator import kinds
from finetune_operator.kinds import CLAIM, NETWORK_POLICY, SERVICE, WATCHED, Kind

VARIABLE = {"apply": (CLAIM, NETWORK_POLICY, SERVICE), "pages": WATCHED}
"""What a method is called with where the kind is a variable: what all attempts of a job share, what is read anew."""
VERBS = {
    "get": {"get"},
    "pages": {"list"},
    "create": {"create"},
    "apply": {"patch", "create"},
    "merge": {"patch"},
    "replace": {"update"},
    "delete": {"delete"},
}
"""A method of ``Api`` → what it needs."""
_KINDS = {name: value for name, value in vars(kinds).items() if isinstance(value, Kind)}


def used_verbs():
    """(group, resource) → verbs that the operator uses on it; what is watched is listed first."""
    table = {(kind.group, kind.plural): {"list", "watch"} for kind in WATCHED}
    folder = Path(sys.modules[finetune_operator.__name__].__file__).parent
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            for resource, verbs in _asked(node, file):
                table.setdefault(resource, set()).update(verbs)
    return table


def _asked(node, file):
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in VERBS:
        return
    if ast.unparse(node.func.value).rpartition(".")[2].strip("_") != "api":
        return
    named = node.args[0].id if isinstance(node.args[0], ast.Name) else None
    assert named in _KINDS or (named == "kind" and node.func.attr in VARIABLE), f"{file}:{node.lineno}: which kind?"
    subresource = [argument.value for argument in node.args[2:] if isinstance(argument, ast.Constant)]
    suffix = "".join(f"/{name}" for name in subresource if node.func.attr == "replace")
    for kind in [_KINDS[named]] if named in _KINDS else VARIABLE[node.func.attr]:
        yield (kind.group, kind.plural + suffix), VERBS[node.func.attr]
