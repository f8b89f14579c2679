"""``python -m finetune_api.generate [--check]``: writes everything that is made from the models, or tells what drifted.

Invariant: the files are a function of the models, and of what people wrote of the chart's values, so running it twice
changes nothing.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from finetune_api.base import GROUP
from finetune_api.chart import crd_template, values_schema
from finetune_api.crd import RESOURCES, definition
from finetune_api.editor import editor_schema
from finetune_api.experiment import FineTuneExperiment
from finetune_api.reference import reference
from finetune_api.support import support

ROOT = Path(__file__).resolve().parents[2]
"""The checkout that this package lies in."""
CHART = "helm/finetune-operator"
"""The chart's folder in the checkout."""
OWN_VALUES = ROOT / "helm/values.schema.json"
"""The schema of the chart's values as people wrote it, before the models' part."""
NOTICE = "Generated from crds/finetune_api by `python -m finetune_api.generate`; do not edit."


class _Dumper(yaml.SafeDumper):
    """YAML without anchors, lists indented below their key."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002 - its interface
        super().increase_indent(flow, indentless=False)


def generated_files() -> dict[str, str]:
    """The text of every generated file, by its path in the checkout."""
    definitions = {resource.plural: _yaml(definition(resource)) for resource in RESOURCES}
    return {
        **{f"crds/{plural}.{GROUP}.yaml": f"# {NOTICE}\n{text}" for plural, text in definitions.items()},
        **{f"{CHART}/templates/crds/{plural}.yaml": crd_template(text, NOTICE) for plural, text in definitions.items()},
        f"{CHART}/values.schema.json": _json(values_schema(json.loads(OWN_VALUES.read_text("utf-8")), NOTICE)),
        "docs/reference.md": reference(NOTICE),
        "docs/support.md": support(NOTICE),
        "docs/finetunejob.schema.json": _json(editor_schema(NOTICE)),
        "docs/finetuneexperiment.schema.json": _json(editor_schema(NOTICE, FineTuneExperiment)),
    }


def drifted(root: Path, files: Mapping[str, str]) -> list[str]:
    """Paths of the ``files`` that are missing under ``root``, or hold another text."""
    return [path for path, text in files.items() if _read(root / path) != text]


def write(root: Path, files: Mapping[str, str]) -> list[str]:
    """Brings ``files`` under ``root`` up to date; returns the paths of those that changed."""
    changed = drifted(root, files)
    for path in changed:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(files[path], encoding="utf-8")
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if ``--check`` found drift, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m finetune_api.generate", description="Write what the models define."
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a file has drifted")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to write to")
    options = parser.parse_args(arguments)
    if options.check:
        paths = drifted(options.root, generated_files())
        for path in paths:
            print(f"{path}: differs from the models; run python -m finetune_api.generate", file=sys.stderr)
        return 1 if paths else 0
    for path in write(options.root, generated_files()):
        print(f"wrote {path}")
    return 0


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _yaml(document: dict[str, Any]) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
