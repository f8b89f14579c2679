"""Conversations and answers to token ids, and which of them are learned: what the assistant says, and its end.

Invariant: a token is learned if it begins in an answer as the tokenizer's own chat template writes it. The template is
used as it is: the text of a turn is what it adds to the text of the turns before.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from finetune_trainer.data.cache import Beat, cached
from finetune_trainer.data.columns import FIELDS, show
from finetune_trainer.data.dataset import Encoded
from finetune_trainer.data.encode import Row, fingerprint, load_encoded, write_targets
from finetune_trainer.errors import DataError, SpecFault
from finetune_trainer.task import IGNORED

Origin = Callable[[int], str]
Spans = list[tuple[int, int]]
"""First and last + 1 character of each answer."""
Messages = list[dict[str, str]]

_CHUNK = 512
_FORMAT = 1
_ROLES = ("system", "user", "assistant")
BETWEEN = "\n"
"""Between prompt and completion, where no chat template says what is."""


def encode_answers(
    table: pa.Table,
    tokenizer: Any,
    *,
    max_length: int,
    origin: Origin,
    key: Mapping[str, Any],
    cache: Path,
    beat: Beat,
) -> Encoded:
    """Token ids of every row of ``table`` (``messages``, or ``prompt`` and ``completion``), and which are learned.

    Raises:
        SpecFault: The tokenizer has no chat template, or does not tell where in a text its tokens are.
        DataError: A conversation is not as it must be, or no answer is left within ``max_length``.
    """
    if not tokenizer.is_fast:
        raise SpecFault("spec.model.tokenizer: must be a fast one, which tells where in a text each token is")
    if "messages" in table.column_names and not tokenizer.chat_template:
        raise SpecFault(
            "spec.data.columns.messages: the tokenizer has no chat template; take an instruct model's tokenizer, or"
            " columns prompt and completion"
        )
    identity = {
        "format": _FORMAT,
        "texts": dict(key),
        "tokenizer": fingerprint(tokenizer),
        "template": tokenizer.chat_template,
        "maxLength": max_length,
    }

    def build(folder: Path) -> None:
        _build(folder, table, tokenizer, max_length, origin, beat)

    return cached(cache, "answers", identity, build=build, load=load_encoded, beat=beat)


def _build(folder: Path, table: pa.Table, tokenizer: Any, max_length: int, origin: Origin, beat: Beat) -> None:
    def encoded(start: int) -> list[Row]:
        rows = table.slice(start, _CHUNK).to_pylist()
        rendered = [render(row, tokenizer, lambda i=start + i: origin(i)) for i, row in enumerate(rows)]  # type: ignore[misc]
        return _encode(tokenizer, rendered, max_length)

    # Nothing is before the first token that it could be predicted from.
    if not write_targets(folder, map(encoded, range(0, len(table), _CHUNK)), beat, first=1):
        raise DataError(f"spec.data: no answer is left within spec.data.maxLength ({max_length} tokens); raise it")


def _encode(tokenizer: Any, rendered: list[tuple[str, Spans]], max_length: int) -> list[Row]:
    has_template = bool(tokenizer.chat_template)
    encoded = tokenizer(
        [text for text, _ in rendered],
        truncation=True,
        max_length=max_length,
        add_special_tokens=not has_template,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    rows: list[Row] = []
    for (_, spans), ids, offsets, one in zip(
        rendered, encoded["input_ids"], encoded["offset_mapping"], encoded.encodings, strict=True
    ):
        targets = [
            token if end > start and any(first <= start < last for first, last in spans) else IGNORED
            for token, (start, end) in zip(ids, offsets, strict=True)
        ]
        was_cut, end_id = bool(one.overflowing), tokenizer.eos_token_id
        if not has_template and not was_cut and end_id is not None and len(ids) < max_length and ids[-1] != end_id:
            rows.append(([*ids, end_id], [*targets, end_id], was_cut))
        else:
            rows.append((ids, targets, was_cut))
    return rows


def render(row: Mapping[str, Any], tokenizer: Any, origin: Callable[[], str]) -> tuple[str, Spans]:
    """The whole text of a row, and where in it the answers are. Raises DataError."""
    if "messages" in row:
        return _conversation(read_messages(row["messages"], origin), tokenizer, origin)
    prompt, completion = row["prompt"], row["completion"]
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        return _conversation(turns, tokenizer, origin)
    before = prompt + BETWEEN
    return before + completion, [(len(before), len(before) + len(completion))]


def _conversation(messages: Messages, tokenizer: Any, origin: Callable[[], str]) -> tuple[str, Spans]:
    def text(turns: Messages, *, opens: bool = False) -> str:
        if not turns:
            return ""
        try:
            written: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=opens)
        except Exception as error:  # a template is a program of others, and raises what it likes
            raise DataError(
                f"{origin()}: {FIELDS['messages']}: the tokenizer's chat template refuses it: {error}"
            ) from error
        return written

    whole, spans = text(messages), []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = text(messages[:number], opens=True), text(messages[: number + 1])
        if not whole.startswith(after) or not after.startswith(before):
            raise DataError(
                f"{origin()}: {FIELDS['messages']}[{number}]: the tokenizer's chat template writes this turn otherwise"
                " when more turns follow, so that what is learned would not be what is said; end the conversation here"
            )
        spans.append((len(before), len(after)))
    return whole, spans


def read_messages(text: str, origin: Callable[[], str]) -> Messages:
    """The turns of a conversation.

    Raises:
        DataError: It is not a list of turns with role and content, or the assistant says nothing in it.
    """
    place = f"{origin()}: {FIELDS['messages']}"
    try:
        turns = json.loads(text)
    except ValueError as error:
        raise DataError(f"{place}: is not JSON: {error}") from error
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{place}: is {show(turns)}, must be a list of turns")
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or turn.get("role") not in _ROLES:
            found = show(turn.get("role")) if isinstance(turn, dict) else show(turn)
            raise DataError(f"{place}[{number}].role: is {found}, must be one of {', '.join(_ROLES)}")
        if not isinstance(turn.get("content"), str) or not turn["content"].strip():
            raise DataError(
                f"{place}[{number}].content: is {show(turn.get('content'))}, must be a text that says something"
            )
    if all(turn["role"] != "assistant" for turn in turns):
        raise DataError(f"{place}: has no turn of the assistant, so that there is nothing to learn")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]
