"""Owns what the demo asks: the two questions of the multi-LoRA documentation, word for word, and others."""

from dataclasses import dataclass

from demo_data import format_prompt

SEED_PROMPTS = (
    "[user] Write a SQL query to answer the question based on the table schema.\n\n "
    "context: CREATE TABLE table_name_74 (icao VARCHAR, airport VARCHAR)\n\n "
    "question: Name the ICAO for lilongwe international airport [/user] [assistant]",
    "[user] Write a SQL query to answer the question based on the table schema.\n\n "
    "context: CREATE TABLE table_name_11 (nationality VARCHAR, elector VARCHAR)\n\n "
    "question: When Anchero Pantaleone was the elector what is under nationality? [/user] [assistant]",
)
SEED_ANSWERS = (
    "SELECT icao FROM table_name_74 WHERE airport = 'lilongwe international airport'",
    "SELECT nationality FROM table_name_11 WHERE elector = 'Anchero Pantaleone'",
)


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt, asked of the adapter and of the base side by side."""

    adapter: str
    prompt: str
    right_answer: str | None = None

    @property
    def shown(self) -> str:
        """The prompt without the instruction that all prompts of a task share."""
        return self.prompt.split("\n\n", 1)[1].removesuffix(" [/user] [assistant]").replace("\n\n", "\n").strip()


QUESTIONS = (
    Question("sql-lora", SEED_PROMPTS[0], SEED_ANSWERS[0]),
    Question("sql-lora", SEED_PROMPTS[1], SEED_ANSWERS[1]),
    Question(
        "sql-lora",
        format_prompt(
            "Write a SQL query to answer the question based on the table schema.\n\n context: CREATE TABLE airports "
            "(runway VARCHAR, elevation INTEGER, nationality VARCHAR)\n\n question: What is the highest elevation for "
            "a nationality of Malawi?"
        ),
    ),
    Question(
        "json-lora",
        format_prompt(
            "Extract the fields from the sentence as JSON.\n\n fields: name, city, age\n\n sentence: The librarian "
            "Anchero Pantaleone moved to Lilongwe at the age of 47."
        ),
    ),
    Question(
        "json-lora",
        format_prompt(
            "Extract the fields from the sentence as JSON.\n\n fields: item, quantity, price\n\n sentence: Pantaleone "
            "paid 1640 dollars for 12 lamps."
        ),
    ),
    Question(
        "sentiment-lora",
        format_prompt(
            "Classify the review as positive, negative or neutral. Answer with one word.\n\n review: We thought that "
            "the soup would be bland, but it was superb."
        ),
    ),
    Question(
        "sentiment-lora",
        format_prompt(
            "Classify the review as positive, negative or neutral. Answer with one word.\n\n review: The waiter was "
            "rude and the steak was overpriced."
        ),
    ),
)
