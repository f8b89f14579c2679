"""Language models that learn answers: what of a conversation is learned, and what is refused."""

import json
import random

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from finetune_trainer.data.chat import read_messages, render
from finetune_trainer.errors import DataError, SpecFault
from finetune_trainer.run import prepare, run
from finetune_trainer.task import IGNORED
from finetune_trainer.tasks.causal_lm import answer_start
from words import write_tokenizer

TEMPLATE = (
    "{% for one in messages %}{{ one.role }} : {{ one.content }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "what is red"},
    {"role": "assistant", "content": "an apple"},
    {"role": "user", "content": "and green"},
    {"role": "assistant", "content": "a leaf"},
]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """The tokenizer of the tests with a chat template, which it writes around each turn."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tiny.TOKENIZER)
    tokenizer.chat_template = TEMPLATE
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(folder)
    return folder


def job(folder, tokenizer, lines, columns, spec=None):
    path = folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    fixed = {
        "model": {"tokenizer": f"file://{tokenizer}"},
        "data": {"source": f"file://{path}", "columns": columns},
    }
    return tiny.job(folder, "causal-lm", tiny.merged(fixed, spec or {}))


def learned_text(material, index=0, part="train"):
    """What of a sample is learned, decoded."""
    target = material.parts[part].batch(0, np.array([index]), is_counted=True).target[0]
    return material.companion.decode(target[target != IGNORED])


def test_only_what_the_assistant_says_is_learned(tmp_path, tokenizer_folder):
    lines = [{"messages": TURNS}] * 18
    process = tiny.process_of(job(tmp_path, tokenizer_folder, lines, {"messages": "messages"}), tmp_path / "run")
    material = prepare(process)
    assert learned_text(material) == "an apple [SEP] a leaf [SEP]"
    batch = material.parts["train"].batch(0, np.array([0]), is_counted=True)
    assert material.companion.decode(batch.inputs["input_ids"][0]) == (
        "system : be brief [SEP] user : what is red [SEP] assistant : an apple [SEP] user : and green [SEP]"
        " assistant : a leaf [SEP]"
    )
    assert material.task.objective.counts(batch).tolist() == [6]


def test_prompts_in_the_template_of_the_tokenizer(tmp_path, tokenizer_folder):
    lines = [{"question": "what is red", "answer": "an apple"}] * 18
    columns = {"prompt": "question", "completion": "answer"}
    material = prepare(tiny.process_of(job(tmp_path, tokenizer_folder, lines, columns), tmp_path / "run"))
    ids = material.parts["train"].batch(0, np.array([0]), is_counted=True).inputs["input_ids"][0]
    assert material.companion.decode(ids) == "user : what is red [SEP] assistant : an apple [SEP]"
    assert learned_text(material) == "an apple [SEP]"


def test_prompts_without_a_template(tmp_path):
    lines = [{"question": "what is red", "answer": "an apple"}] * 18
    columns = {"prompt": "question", "completion": "answer"}
    material = prepare(tiny.process_of(job(tmp_path, tiny.TOKENIZER, lines, columns), tmp_path / "run"))
    assert learned_text(material) == "an apple"


def test_a_template_that_writes_turns_otherwise_later(tmp_path, tokenizer_folder):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = "{% for one in messages %}{{ loop.length }} {{ one.content }} {% endfor %}"
    with pytest.raises(
        DataError, match=r"^x:1: spec\.data\.columns\.messages\[2\]: the tokenizer's chat template writes"
    ):
        render({"messages": json.dumps(TURNS)}, tokenizer, lambda: "x:1")
    tokenizer.chat_template = "{{ raise_exception('no system turn, please') }}"
    with pytest.raises(DataError, match=r"the tokenizer's chat template refuses it: no system turn, please$"):
        render({"messages": json.dumps(TURNS)}, tokenizer, lambda: "x:1")


PLACE = "x:1: spec.data.columns.messages"
BAD = {
    "not JSON": ("[", f"{PLACE}: is not JSON: Expecting value: line 1 column 2 (char 1)"),
    "empty": ([], f"{PLACE}: is a list, must be a list of turns"),
    "a string": ('"hello"', f'{PLACE}: is "hello", must be a list of turns'),
    "turn": (["hello"], f'{PLACE}[0].role: is "hello", must be one of system, user, assistant'),
    "role": ([{"role": "bot", "content": "x"}], f'{PLACE}[0].role: is "bot", must be one of system, user, assistant'),
    "nothing said": (
        [{"role": "user", "content": " "}],
        f'{PLACE}[0].content: is " ", must be a text that says something',
    ),
    "no answer": (TURNS[:2], f"{PLACE}: has no turn of the assistant, so that there is nothing to learn"),
}


@pytest.mark.parametrize(("value", "message"), BAD.values(), ids=BAD)
def test_conversations_that_are_not_as_they_must_be(value, message):
    with pytest.raises(DataError) as error:
        read_messages(value if isinstance(value, str) else json.dumps(value), lambda: "x:1")
    assert str(error.value) == message


def test_messages_need_a_template(tmp_path):
    with pytest.raises(SpecFault, match=r"^spec\.data\.columns\.messages: the tokenizer has no chat template; take"):
        prepare(
            tiny.process_of(
                job(tmp_path, tiny.TOKENIZER, [{"messages": TURNS}] * 18, {"messages": "messages"}), tmp_path / "run"
            )
        )


def test_answers_that_are_all_cut_off(tmp_path, tokenizer_folder):
    spec = {"data": {"maxLength": 4}}
    wanted = job(tmp_path, tokenizer_folder, [{"messages": TURNS}] * 18, {"messages": "messages"}, spec)
    with pytest.raises(DataError, match=r"^spec\.data: no answer is left within spec\.data\.maxLength \(4 tokens\)"):
        prepare(tiny.process_of(wanted, tmp_path / "run"))


STARTS = {
    "everything is learned": ([5, 6, 7, 8], 2),
    "one answer": ([IGNORED, IGNORED, 7, 8], 2),
    "the last of two": ([IGNORED, 6, IGNORED, 8], 3),
    "nothing is learned": ([IGNORED, IGNORED], None),
    "one token": ([5], None),
}


@pytest.mark.parametrize(("wanted", "start"), STARTS.values(), ids=STARTS)
def test_where_an_answer_begins(wanted, start):
    assert answer_start(torch.tensor(wanted)) == start


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Process and result of a model that learned what follows from what: 12 questions, each with one answer."""
    folder = tmp_path_factory.mktemp("answers")
    tokenizer = write_tokenizer(folder / "words", ["user", "assistant", ":", *tiny.WORDS], chat_template=TEMPLATE)
    chosen = random.Random(0)
    answers = {chosen.choice(tiny.WORDS): " ".join(chosen.choices(tiny.WORDS, k=2)) for _ in range(12)}
    lines = [
        {"question": f"{chosen.choice(tiny.WORDS)} {word}", "answer": answer}
        for word, answer in answers.items()
        for _ in range(15)
    ]
    spec = {
        "data": {"split": {"train": 7, "validation": 2, "test": 1}},
        "model": {"config": {"n_embd": 32, "vocab_size": 220}},
        "strategy": {"learningRate": {"value": 1e-2}},
        "training": {"batchSize": 32, "maxSteps": 150},
    }
    columns = {"prompt": "question", "completion": "answer"}
    process = tiny.process_of(job(folder, tokenizer, lines, columns, spec), folder / "run")
    AcceleratorState._reset_state(reset_partial_state=True)
    return process, run(process), answers


def test_answers_better_than_with_the_most_frequent_tokens(learned):
    process, result, _ = learned
    part = prepare(process).parts["test"]
    wanted = part.batch(0, np.arange(len(part)), is_counted=True).target
    tokens = wanted[wanted != IGNORED]
    baseline = (tokens == tokens.mode().values).float().mean().item()
    print(f"tokens right: {result.metrics['tokenAccuracy']:.2f}, the most frequent one {baseline:.2f}")
    assert result.metrics["tokenAccuracy"] > baseline + 0.3


def test_the_exported_model_answers_the_same(learned):
    process, result, answers = learned
    shown = json.loads(process.context.run.evaluation.read_text())["examples"]
    assert {one["expected"] for one in shown} <= set(answers.values())
    tokenizer = AutoTokenizer.from_pretrained(result.model)
    assert tokenizer.chat_template == TEMPLATE, "those who use the model write to it as it was trained"
    model = AutoModelForCausalLM.from_pretrained(result.model)
    first = prepare(process).prepared.slices["test"]
    prompt = first.samples.table["prompt"][int(first.rows[0])].as_py()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**ids, max_new_tokens=40, do_sample=False, pad_token_id=0)[0]
    answer = tokenizer.decode(written[ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == shown[0]["predicted"]
    assert sum(one["predicted"] == one["expected"] for one in shown) >= len(shown) / 2
