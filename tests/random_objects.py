"""Random objects of the API, made from its models: valid ones, and ones with one thing wrong, with where it is.

A seed gives the same objects for ever. Numbers and lengths are drawn from their bounds more often than from between.
"""

import copy
import json
from random import Random

from pydantic import ValidationError

from finetune_api.base import DATA_KEY, DNS_LABEL, DNS_SUBDOMAIN, QUANTITY, SOURCE, WEB_ADDRESS
from finetune_api.job import FineTuneJob
from finetune_api.runtime import FineTuneRuntime
from finetune_api.schema import json_schema, models_in

SCHEMAS = {kind: json_schema(kind) for kind in (FineTuneJob, FineTuneRuntime)}
MODELS = {name: model for kind in SCHEMAS for name, model in models_in(kind).items()}
NASTY = ("a b", 'say "no"', "$(HOME)", "{{ .Values }}", "\n", "'; rm -rf /", "\x00", "é😀", "a: b # c", "null", "../..")
VARIABLE = SCHEMAS[FineTuneRuntime]["properties"]["spec"]["properties"]["env"]["items"]["properties"]["name"]["pattern"]
FAR = 10**6
"""How large a number without an upper bound becomes."""
LONGEST = 40
"""How long a list becomes."""


def random_object(kind, rng: Random, namespace="default", **spec):
    """A valid object of a kind in JSON types; ``spec`` over what is drawn."""
    schema = SCHEMAS[kind]["properties"]
    drawn = {**_value(schema["spec"], rng), **spec}
    metadata = {"name": f"{_label(rng, 40)}-{rng.randrange(10**6)}"}
    if kind is FineTuneJob:
        metadata["namespace"] = namespace
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": kind.__name__, "metadata": metadata, "spec": drawn}


def broken_job(rng: Random, namespace="default"):
    """A FineTuneJob with one thing wrong, and the path of the field that is to be named."""
    while True:
        document = random_object(FineTuneJob, rng, namespace)
        ways = [_wrong_rule, _wrong_value, _wrong_value, _wrong_object]
        path = rng.choice(ways)(document, rng)
        if path:
            return document, path


# --- valid values


def _value(schema, rng):
    if "enum" in schema:
        return rng.choice(schema["enum"])
    return {
        "object": _object,
        "array": _array,
        "string": _string,
        "integer": _integer,
        "number": _number,
        "boolean": lambda _, rng: rng.random() < 0.5,
    }[schema["type"]](schema, rng)


def _object(schema, rng):
    if "properties" not in schema:
        return _map(schema, rng)
    model = MODELS[schema["title"]]
    while True:  # until its rules are kept
        share = rng.choice((0.1, 0.5, 0.9))
        drawn = {
            name: _value(field, rng)
            for name, field in schema["properties"].items()
            if name in schema.get("required", ()) or rng.random() < share
        }
        try:
            model.model_validate_json(json.dumps(drawn))
        except ValidationError:
            continue
        return drawn


def _map(schema, rng):
    inner = schema.get("additionalProperties")
    count = rng.randint(schema.get("minProperties", 0), 3)
    if isinstance(inner, dict):
        return {_label(rng, 20): _value(inner, rng) for _ in range(count)}
    return {
        rng.choice(("a", *NASTY)): rng.choice((1, 2.5, True, "x", [1, {"b": None}], {"c": []})) for _ in range(count)
    }


def _array(schema, rng):
    least, most = schema.get("minItems", 0), min(schema.get("maxItems", LONGEST), LONGEST)
    items = [_value(schema["items"], rng) for _ in range(rng.choice((least, rng.randint(least, most))))]
    key = (schema.get("x-kubernetes-list-map-keys") or [None])[0]
    if schema.get("uniqueItems") or key:
        items = list({json.dumps(one[key] if key else one): one for one in items}.values())
        while len(items) < least:
            items.append(f"more-{len(items)}")
    return items


def _string(schema, rng):
    most = min(schema.get("maxLength", 1024), 1024)
    if "pattern" in schema:
        return rng.choice(FORMS[schema["pattern"]](rng, most))
    text = rng.choice((*NASTY, _label(rng, 10), "x" * most))
    return text[:most] if len(text) >= schema.get("minLength", 0) else "x" * schema["minLength"]


FORMS = {
    DNS_LABEL: lambda rng, most: [_label(rng, most)],
    DNS_SUBDOMAIN: lambda rng, most: [_label(rng, 60), f"{_label(rng, 20)}.{_label(rng, 20)}", _label(rng, most)],
    QUANTITY: lambda rng, most: ["0", "1", "500m", "0.1", "1000Mi", "16Gi", "2.5Ti", "999999T", "0.0001k"],
    DATA_KEY: lambda rng, most: ["token", "A.b-c_9", "-", "x" * most],
    SOURCE: lambda rng, most: [
        "hf://a/b",
        f"pvc://{_label(rng, 30)}/{_label(rng, 5)}",
        "pvc://a-/b",
        "file:///a/$(b)",
    ],
    WEB_ADDRESS: lambda rng, most: ["http://a", f"https://{_label(rng, 30)}:5000/$(b)"],
    VARIABLE: lambda rng, most: ["A", "NCCL_DEBUG", "HF_TOKEN", "MASTER_ADDR", f"_{_label(rng, 5)}".replace("-", "")],
}
"""Strings of each pattern."""


def _label(rng, most):
    size = rng.choice((1, rng.randint(1, min(most, 12)), most))
    return "".join(rng.choice("abcxyz012-" if 0 < at < size - 1 else "abcz") for at in range(size))


def _integer(schema, rng):
    least, most = schema.get("minimum", 0), schema.get("maximum", FAR)
    if "pattern" in schema and rng.random() < 0.5:
        return schema["pattern"].strip("^$")
    return rng.choice((least, most, rng.randint(least, most), rng.randint(least, min(most, least + 4))))


def _number(schema, rng):
    least = schema.get("minimum", schema.get("exclusiveMinimum", 0))
    most = schema.get("maximum", schema.get("exclusiveMaximum", FAR))
    inner = rng.uniform(least, most)
    ends = [schema[name] for name in ("minimum", "maximum") if name in schema]
    return rng.choice((inner, max(inner, 1e-300), *ends))


# --- broken ones


WRONG_RULES = (
    # object, what is set in it (None: removed), the field that is to be named
    ("spec.model", {"source": None, "config": None, "revision": None}, ""),
    ("spec.strategy.learningRate", {"value": 1, "top": 1, "bottom": 1}, ""),
    ("spec.strategy.learningRate", {"value": 1, "top": None, "bottom": 1, "layerDecay": None}, ".bottom"),
    ("spec.strategy", {"trainable": "head", "lastLayers": 1, "freeze": None, "lora": None}, ".lastLayers"),
    ("spec.strategy", {"trainable": "head", "lastLayers": None, "freeze": {}, "lora": None}, ".freeze"),
    ("spec.strategy", {"trainable": "all", "lastLayers": None, "freeze": {}, "lora": {}}, ".lora"),
    ("spec.training", {"epochs": 1, "maxSteps": 1}, ""),
    ("spec.training", {"batchSize": 1, "tokensPerBatch": 16}, ""),
    ("spec.evaluation.every", {"epochs": 1, "steps": 1}, ""),
    ("spec.checkpoint.volume", {"claimName": "a", "size": "1Gi"}, ""),
    ("spec.checkpoint.volume", {"claimName": "a", "size": None, "storageClassName": "b"}, ".storageClassName"),
    ("spec.distributed", {"processesPerWorker": 2, "resources": {"gpus": 1}}, ".processesPerWorker"),
    ("spec", {"task": "causal-lm", "data": {"source": "hf://a/b", "multiLabel": True}}, ".data.multiLabel"),
    (
        "spec",
        {"task": "causal-lm", "data": {"source": "hf://a/b", "augmentation": {"text": {"swap": 1}}}},
        ".data.augmentation.text",
    ),
    (
        "spec",
        {"task": "causal-lm", "data": {"source": "hf://a/b", "augmentation": {"image": {"mixup": 1}}}},
        ".data.augmentation.image",
    ),
)


def _wrong_rule(document, rng):
    path, change, field = rng.choice(WRONG_RULES)
    inner = document
    for name in path.split("."):
        inner = inner.setdefault(name, {})
    inner.update(change)
    for name in [name for name, value in change.items() if value is None]:
        del inner[name]
    return path + field


def _wrong_value(document, rng):
    holder, key, schema, path = rng.choice(list(_places(document["spec"], _spec_schema(), "spec")))
    wrongs = list(_wrongs(schema, holder[key]))
    holder[key] = rng.choice(wrongs)
    return path


def _wrongs(schema, value):
    """Values that this field must not have."""
    kind = schema["type"]
    yield 7 if kind == "string" else "x"
    yield {"a": 1} if kind != "object" else []
    if "enum" in schema:
        yield "something-else"
    if "pattern" in schema:
        yield "Not Valid! "
    if kind == "integer":
        yield 1.5
    yield from (schema[name] - 1 for name in ("minimum", "exclusiveMinimum") if name in schema)
    yield from (schema[name] + 1 for name in ("maximum", "exclusiveMaximum") if name in schema)
    if schema.get("minLength"):
        yield ""
    if "maxLength" in schema:
        yield "a" * (schema["maxLength"] + 1)
    if schema.get("minItems"):
        yield []
    if schema.get("uniqueItems") and value:
        yield [value[0], *value]


def _wrong_object(document, rng):
    """A field that is not one, a required one that is missing, a name that cannot be."""
    way = rng.choice(("unknown", "unknown", "missing", "name", "spec"))
    if way == "name":
        document["metadata"]["name"] = rng.choice(("Upper", "a" * 53, "-a", "a.b", "a_b"))
        return "metadata.name"
    if way == "spec":
        document["spec"] = rng.choice(("text", 3, []))
        return "spec"
    places = [(document, "spec", _spec_schema(), "spec"), *_places(document["spec"], _spec_schema(), "spec")]
    objects = [(holder[key], schema, path) for holder, key, schema, path in places if "properties" in schema]
    inner, schema, path = rng.choice(objects)
    if way == "unknown":
        inner["unknwon"] = copy.deepcopy(rng.choice((1, "x", {}, [])))
        return f"{path}.unknwon"
    if not schema.get("required"):
        return None
    missing = rng.choice(schema["required"])
    del inner[missing]
    return f"{path}.{missing}"


def _places(value, schema, path):
    """Every field in ``value``: what holds it, its key there, its schema and its path."""
    if schema["type"] == "array":
        for at, item in enumerate(value):
            yield value, at, schema["items"], f"{path}[{at}]"
            yield from _places(item, schema["items"], f"{path}[{at}]")
        return
    for name, field in schema.get("properties", {}).items():
        if name in value:
            yield value, name, field, f"{path}.{name}"
            if field["type"] in ("object", "array"):
                yield from _places(value[name], field, f"{path}.{name}")


def _spec_schema():
    return SCHEMAS[FineTuneJob]["properties"]["spec"]
