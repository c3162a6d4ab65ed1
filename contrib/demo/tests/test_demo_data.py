import functools
import re

import pytest

from demo_data import STOP, TASKS
from demo_data import examples as made_examples
from demo_questions import QUESTIONS, SEED_PROMPTS
from demo_words import split_of

examples = functools.cache(made_examples)
SCHEMA = re.compile(r"CREATE TABLE (\w+) \((.*?)\)\n")


@pytest.mark.parametrize("task", TASKS)
def test_the_same_arguments_give_the_same_examples(task):
    assert made_examples(task, 1, "train", 20) == made_examples(task, 1, "train", 20)
    assert made_examples(task, 1, "train", 20) != made_examples(task, 2, "train", 20)


@pytest.mark.parametrize("task", TASKS)
def test_no_prompt_is_both_trained_and_held_out(task):
    trained = {example.prompt for example in examples(task, 1, "train", 400)}
    held_out = {example.prompt for example in examples(task, 2, "held-out", 200)}
    assert len(trained) == 400
    assert len(held_out) == 200
    assert not trained & held_out


def test_training_never_saw_a_held_out_table_or_column():
    trained = names_of("train", seed=1, count=2000)
    held_out = names_of("held-out", seed=2, count=200)
    assert not trained & held_out


def test_training_never_saw_a_held_out_value():
    assert not values_of("train", seed=1, count=2000) & values_of("held-out", seed=2, count=200)


def test_the_documented_questions_are_held_out():
    trained = names_of("train", seed=1, count=2000)
    for prompt in SEED_PROMPTS:
        table, columns = schema_of(prompt)
        assert not {table, *columns} & trained
        assert split_of(table) == "held-out"


@pytest.mark.parametrize("prompt", SEED_PROMPTS)
def test_training_prompts_have_the_documented_shape(prompt):
    shape = re.compile(
        re.escape(
            "[user] Write a SQL query to answer the question based on the table schema.\n\n context: CREATE TABLE "
        )
        + r"\w+ \((\w+ (VARCHAR|INTEGER)(, )?)+\)\n\n question: [^\n]+"
        + re.escape(" [/user] [assistant]")
    )
    assert shape.fullmatch(prompt)
    assert all(shape.fullmatch(example.prompt) for example in examples("sql-lora", 1, "train", 500))


@pytest.mark.parametrize("task", TASKS)
def test_a_completion_continues_the_prompt_and_ends_with_the_stop_string(task):
    example = examples(task, 1, "train", 1)[0]
    assert example.completion == f" {example.answer} {STOP}"
    assert STOP == "[/assistant]"


def test_the_demo_asks_every_adapter_the_documented_questions_first():
    assert tuple(question.prompt for question in QUESTIONS[:2]) == SEED_PROMPTS
    assert {question.adapter for question in QUESTIONS} == set(TASKS)


def schema_of(prompt):
    table, columns = SCHEMA.search(prompt).groups()
    return table, {column.split()[0] for column in columns.split(", ")}


def names_of(split, *, seed, count):
    found = set()
    for example in examples("sql-lora", seed, split, count):
        table, columns = schema_of(example.prompt)
        found |= {table, *columns}
    return found


def values_of(split, *, seed, count):
    found = set()
    for example in examples("sql-lora", seed, split, count):
        found |= set(re.findall(r"'([^']+)'|[<>=] (\d+)", example.answer))
    return found
