"""What every part of the API shares: the model base, cross-field rules and bounded types.

Invariant: a rule is declared once, as a ``Rule``, and holds in both places that check it: pydantic runs ``check`` and
the generated CRD carries ``cel``. A test evaluates both on the same objects.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


@dataclass(frozen=True)
class Rule:
    """A cross-field rule of one model, told in CEL for the API server and in Python for everybody else."""

    cel: str
    """Expression over ``self`` (https://kubernetes.io/docs/reference/using-api/cel/); true means valid."""
    check: Callable[[Any], bool]
    """The same predicate over the parsed model; true means valid."""
    message: str
    """What is wrong and what to do, as the user reads it."""
    field: str = ""
    """The field (camelCase) that the message is about; empty for the object as a whole."""


def cel_list(names: Iterable[str]) -> str:
    """Names as a list in CEL."""
    return f"[{', '.join(map(repr, names))}]"


class ApiModel(BaseModel):
    """Base of every object in the API: frozen, strict, camelCase on the wire, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    rules: ClassVar[tuple[Rule, ...]] = ()
    """Cross-field rules, checked after every field is valid on its own."""

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        broken = [rule for rule in self.rules if not rule.check(self)]
        if broken:
            told = "; ".join(rule.message for rule in broken)
            raise PydanticCustomError("rules", "{message}", {"message": told, "broken": broken})
        return self

    def to_wire(self) -> dict[str, Any]:
        """This object as the JSON types that Kubernetes stores: camelCase, nothing that is unset."""
        return self.model_dump(mode="json", exclude_none=True)


def exactly_one(*names: str, required: bool = True) -> Rule:
    """Exactly one (or, if not ``required``, at most one) of the optional fields ``names`` is set."""
    count = " + ".join(f"(has(self.{name}) ? 1 : 0)" for name in names)
    attributes = [_snake(name) for name in names]

    def check(model: Any) -> bool:
        given = sum(getattr(model, attribute) is not None for attribute in attributes)
        return given == 1 if required else given <= 1

    listing = " or ".join(names)
    amount = "exactly" if required else "at most"
    return Rule(
        cel=f"{count} {'==' if required else '<='} 1",
        check=check,
        message=f"must have {amount} one of {listing}",
    )


def requires(name: str, other: str) -> Rule:
    """If the optional field ``name`` is set, so is ``other``."""
    given, needed = _snake(name), _snake(other)
    return Rule(
        cel=f"!has(self.{name}) || has(self.{other})",
        check=lambda model: getattr(model, given) is None or getattr(model, needed) is not None,
        message=f"needs {other} beside it",
        field=name,
    )


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


@dataclass(frozen=True)
class Unique:
    """Marks a tuple whose items (or their field ``key``) do not repeat.

    The CRD says ``x-kubernetes-list-type: set`` (``map`` if there is a key). CEL compares such lists without their
    order, so a tuple whose order means something is ``ordered`` and stays an atomic list there: the API server then
    keeps its order immutable, and leaves the repeated item to this check.
    """

    key: str = ""
    """The field that tells items apart; empty for scalars."""
    ordered: bool = False
    """Whether the order of the items means something."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        if self.key and self.ordered:
            kind: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}
        elif self.key:
            kind = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [self.key]}
        else:
            kind = {"uniqueItems": True, "x-kubernetes-list-type": "atomic" if self.ordered else "set"}
        return {**handler(schema), **kind}

    def _check(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        seen: set[Any] = set()
        for item in items:
            identity = getattr(item, self.key) if self.key else item
            if identity in seen:
                message = f"must not repeat {'a ' + self.key if self.key else 'an item'}, got {str(identity)!r} twice"
                raise PydanticCustomError("not_unique", "{message}", {"message": message})
            seen.add(identity)
        return items


@dataclass(frozen=True)
class CountOr:
    """Marks a field ``int | Literal[word]``: a whole number within bounds, or one word.

    One schema for both, not pydantic's union of two: its faults would name the field twice. The CRD says
    ``x-kubernetes-int-or-string``, where ``pattern`` is asked of strings and the bounds of numbers.
    """

    word: str
    least: int
    most: int

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        as_it_is = core_schema.plain_serializer_function_ser_schema(lambda value: value)
        number = core_schema.int_schema(strict=True, ge=self.least, le=self.most)
        return core_schema.no_info_wrap_validator_function(self._read, number, serialization=as_it_is)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        kind = {"x-kubernetes-int-or-string": True, "pattern": f"^{self.word}$"}
        bounds = {"type": "integer", "minimum": self.least, "maximum": self.most}
        return {**bounds, **kind}

    def _read(self, value: Any, number: Callable[[Any], Any]) -> Any:
        return value if value == self.word else number(value)


UNIQUE = Unique()
"""Marks a tuple as a set: no item twice, in any order."""

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
WEB_ADDRESS = r"^https?://[^\s@]+$"
DATA_KEY = r"^[-._a-zA-Z0-9]+$"
SOURCE = r"^(hf://[^/\s]+|pvc://[a-z0-9][-a-z0-9.]*/|file:///)\S*$"

Name = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=DNS_LABEL)]
"""A DNS label: lower-case letters, digits and dashes, 1 to 63 characters."""
ObjectName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN)]
"""A Kubernetes object's name: DNS labels joined by dots, 1 to 253 characters."""
Source = Annotated[str, StringConstraints(min_length=6, max_length=1024, pattern=SOURCE)]
"""Where a model or data lies: ``hf://owner/name``, ``pvc://claim/path`` or ``file:///path``."""
Quantity = Annotated[str, StringConstraints(min_length=1, max_length=32, pattern=QUANTITY)]
"""A Kubernetes quantity, for example ``500m`` or ``16Gi``."""
Text = Annotated[str, StringConstraints(max_length=1024)]
"""A sentence for people; 1,024 characters at most."""
Word = Annotated[str, StringConstraints(min_length=1, max_length=256)]
"""A short string such as a column, a label or a metric's name; 1 to 256 characters."""
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
PositiveCount = Annotated[int, Field(ge=1, le=2**31 - 1)]
Steps = Annotated[int, Field(ge=0, le=2**53)]
