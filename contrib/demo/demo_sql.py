"""Owns the text-to-SQL task: schema and question in, one SELECT out.

A question is exact: the words of each column, each value as it must be quoted, and one phrase per operator, so that one
answer is right and the score can ask for it literally.
"""

import random
from dataclasses import dataclass

from demo_words import (
    CODE_COLUMNS,
    MODIFIERS,
    MONTHS,
    NUMBER_COLUMNS,
    PERSON_COLUMNS,
    PLACE_COLUMNS,
    PLACE_SUFFIXES,
    TABLE_WORDS,
    TITLE_COLUMNS,
    TITLE_WORDS,
    Split,
    draw,
    letters,
    made_up_word,
    number,
    words_of,
)

INSTRUCTION = "Write a SQL query to answer the question based on the table schema."
KINDS = {
    "person": PERSON_COLUMNS,
    "place": PLACE_COLUMNS,
    "title": TITLE_COLUMNS,
    "code": CODE_COLUMNS,
    "number": NUMBER_COLUMNS,
}
GREATER = ("larger than", "greater than", "more than", "higher than", "over", "above")
LESS = ("smaller than", "less than", "lower than", "fewer than", "under", "below")
AGGREGATES = {
    "COUNT": ("number of", "count of", "total number of"),
    "MAX": ("highest", "maximum", "largest"),
    "MIN": ("lowest", "minimum", "smallest"),
    "AVG": ("average", "mean"),
    "SUM": ("sum of the", "sum of"),
}
PLAIN_QUESTIONS = (
    "What is the {select} {where}?",
    "What was the {select} {where}?",
    "Which {select} {has}?",
    "What {select} {has}?",
    "Name the {select} {where}",
    "Tell me the {select} {where}",
    "I want the {select} {where}",
    "Give the {select} {where}.",
    "List the {select} {where}.",
    "{When} what is under {select}?",
    "{When} what is the {select}?",
    "{When}, what was the {select}?",
)
COUNT_QUESTIONS = ("How many {select} {have}?", "How many {select} are there {where}?")
AGGREGATE_QUESTIONS = (
    "What is the {aggregate} {select} {where}?",
    "What was the {aggregate} {select} {where}?",
    "Name the {aggregate} {select} {where}",
    "Tell me the {aggregate} {select} {where}",
    "{When} what is the {aggregate} {select}?",
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the schema and the words by which a question names it."""

    name: str
    words: str
    kind: str

    @property
    def is_number(self) -> bool:
        """Whether the column is an INTEGER."""
        return self.kind == "number"


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison of the WHERE clause; `phrase` is how the question says the operator, empty for equality."""

    column: Column
    operator: str
    phrase: str
    value: str

    @property
    def sql(self) -> str:
        """The comparison as SQL: text quoted, numbers bare."""
        value = self.value if self.column.is_number else f"'{self.value}'"
        return f"{self.column.name} {self.operator} {value}"


def sql_example(rng: random.Random, split: Split) -> tuple[str, str]:
    """Return the user's text and the query that answers it."""
    columns = _columns(rng, split, rng.choices((2, 3, 4, 5), (40, 30, 20, 10))[0])
    select, rest = columns[0], columns[1:]
    num_conditions = 1 if len(rest) == 1 else rng.choices((1, 2), (65, 35))[0]
    conditions = [_condition(rng, column, split) for column in rest[:num_conditions]]
    function, question = _question(rng, select, conditions, only_two=len(columns) == 2)
    table = _table_name(rng, split)
    rng.shuffle(columns)
    schema = ", ".join(f"{column.name} {'INTEGER' if column.is_number else 'VARCHAR'}" for column in columns)
    target = f"{function}({select.name})" if function else select.name
    where = " AND ".join(condition.sql for condition in conditions)
    text = f"{INSTRUCTION}\n\n context: CREATE TABLE {table} ({schema})\n\n question: {question}"
    return text, f"SELECT {target} FROM {table} WHERE {where}"  # noqa: S608  # text to learn, never run


def _columns(rng: random.Random, split: Split, count: int) -> list[Column]:
    """Return columns that share no word, so that a question's words name one of them."""
    columns: list[Column] = []
    used: set[str] = set()
    while len(columns) < count:
        kind = rng.choices(list(KINDS), (22, 18, 22, 14, 24))[0]
        # Some columns are abbreviations that no model has seen: they can only be copied.
        is_letters = kind == "code" and rng.random() < 0.4
        parts = [letters(rng, split).lower() if is_letters else rng.choice(words_of(KINDS[kind], split))]
        if rng.random() < 0.4:
            parts.insert(0, rng.choice(words_of(MODIFIERS, split)).split("_")[0])
        if len(set(parts)) < len(parts) or used & set(parts):
            continue
        used |= set(parts)
        words = " ".join(parts)
        # Clients write ICAO, Home Team or home team: the schema decides how the column is spelled.
        weights = (25, 70, 5) if is_letters else (70, 15 if len(words) < 7 else 0, 15)
        spoken = rng.choices((words, words.upper(), words.title()), weights)[0]
        columns.append(Column("_".join(parts), spoken, kind))
    return columns


def _condition(rng: random.Random, column: Column, split: Split) -> Condition:
    value = _value(rng, column.kind, split)
    if not column.is_number or rng.random() < 0.35:
        return Condition(column, "=", "", value)
    operator, phrases = rng.choice(((">", GREATER), ("<", LESS)))
    return Condition(column, operator, rng.choice(phrases), value)


def _value(rng: random.Random, kind: str, split: Split) -> str:
    match kind:
        case "number":
            return str(number(rng, *rng.choice(((1, 99), (1900, 2024), (100, 9999), (1, 90000))), split))
        case "person":
            return " ".join(made_up_word(rng, split) for _ in range(rng.choice((1, 2, 2, 2, 3))))
        case "place":
            place = made_up_word(rng, split)
            if rng.random() < 0.6:
                place += f" {rng.choice(words_of(PLACE_SUFFIXES, split)).strip()}"
            elif rng.random() < 0.3:
                place += f", {made_up_word(rng, split)}"
            return rng.choices((place, place.lower(), place.title()), (40, 30, 30))[0]
        case "code":
            return _code(rng, split)
        case _:
            title = " ".join(rng.sample(words_of(TITLE_WORDS, split), rng.choice((1, 2, 2, 3, 4))))
            return rng.choices((title, title.title(), title.capitalize()), (35, 45, 20))[0]


def _code(rng: random.Random, split: Split) -> str:
    day, year = number(rng, 1, 31, split), number(rng, 1900, 2024, split)
    month = rng.choice(words_of(MONTHS, split))
    return rng.choice((
        f"{month} {day}, {year}",
        f"{day} {month} {year}",
        str(year),
        f"{number(rng, 0, 30, split)}-{number(rng, 0, 30, split)}",
        f"{letters(rng, split)}-{number(rng, 1, 999, split)}",
        letters(rng, split),
    ))  # fmt: skip


def _table_name(rng: random.Random, split: Split) -> str:
    if rng.random() < 0.75:
        return draw(lambda: f"table_name_{rng.randint(1, 99)}", split)
    name = rng.choice(words_of(TABLE_WORDS, split))
    return rng.choice((name, f"{name}_{number(rng, 1, 99, split)}", f"table_{number(rng, 1000, 99999, split)}_1"))


def _question(
    rng: random.Random, select: Column, conditions: list[Condition], *, only_two: bool
) -> tuple[str | None, str]:
    """Return the aggregate function, if any, and the question that asks for it."""
    parts = {"select": select.words, **_clauses(rng, conditions)}
    first = conditions[0]
    if only_two and first.operator == "=" and not first.column.is_number and rng.random() < 0.3:
        # With two columns the value alone says which one it belongs to.
        shape = rng.choice(("Name the {0} for {1}", "What is the {0} for {1}?", "What {0} does {1} have?"))
        return None, shape.format(select.words, first.value)
    if rng.random() < (0.55 if select.is_number else 0.12):
        functions = list(AGGREGATES) if select.is_number else ["COUNT"]
        function = rng.choice(functions)
        if function == "COUNT" and rng.random() < 0.6:
            return function, rng.choice(COUNT_QUESTIONS).format(**parts)
        aggregate = rng.choice(AGGREGATES[function])
        return function, rng.choice(AGGREGATE_QUESTIONS).format(aggregate=aggregate, **parts)
    return None, rng.choice(PLAIN_QUESTIONS).format(**parts)


def _clauses(rng: random.Random, conditions: list[Condition]) -> dict[str, str]:
    """Say the conditions in the four grammatical positions that the questions have."""

    def of(condition: Condition) -> str:
        value = f"{condition.phrase} {condition.value}".strip()
        shapes = ("{0} of {1}", "a {0} of {1}") if not condition.phrase else ("{0} {1}", "a {0} {1}")
        return rng.choice(shapes).format(condition.column.words, value)

    def state(condition: Condition) -> str:
        verb = rng.choice(("is", "was"))
        if not condition.phrase and rng.random() < 0.4:
            return f"{condition.value} {verb} the {condition.column.words}"
        return f"the {condition.column.words} {verb} {condition.phrase} {condition.value}".replace("  ", " ")

    nouns = " and ".join(of(condition) for condition in conditions)
    states = " and ".join(state(condition) for condition in conditions)
    return {
        "where": rng.choice((f"with {nouns}", f"for {nouns}", f"when {states}", f"where {states}")),
        "has": f"has {nouns}",
        "have": f"have {nouns}",
        "When": f"When {states}",
    }
