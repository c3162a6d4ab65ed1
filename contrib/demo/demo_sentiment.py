"""Owns the sentiment task: a short review in, one of three words out.

The opinion words of the held-out reviews are new to the adapter: it has to know what they mean, not remember them.
"""

import random

from demo_words import Split, word_list, words_of

INSTRUCTION = "Classify the review as positive, negative or neutral. Answer with one word."

GOOD = word_list("""
    excellent wonderful superb delightful brilliant fantastic amazing outstanding lovely beautiful perfect great
    charming comfortable impressive magnificent marvellous pleasant remarkable splendid terrific fabulous gorgeous
    reliable tasty elegant friendly enjoyable flawless stunning exceptional awesome fresh generous helpful incredible
    joyful admirable phenomenal refreshing satisfying smooth sturdy superior thoughtful valuable adorable exquisite
    graceful dependable
""")
BAD = word_list("""
    terrible awful horrible dreadful disappointing poor disgusting useless broken boring ugly annoying rude unpleasant
    appalling atrocious dirty noisy faulty flimsy cheap painful pathetic mediocre shoddy worthless miserable tasteless
    stale uncomfortable defective overpriced frustrating unreliable lousy horrendous inferior nasty clumsy careless
    unacceptable rotten sloppy tedious bland depressing offensive ridiculous shabby unbearable
""")
THINGS = word_list("""
    hotel room soup phone camera film book jacket laptop chair sofa car bicycle restaurant coffee pizza steak concert
    lamp printer keyboard mattress blender vacuum watch backpack tent museum train flight waiter album game kettle
    shirt umbrella guitar toaster salad cruise garden lesson haircut perfume wine cake bakery monitor
""")
DAYS = word_list("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
COLOURS = word_list("black white blue green red grey brown yellow purple orange")

OPINIONS = (
    "The {thing} was {word}.",
    "What a {word} {thing}!",
    "I found the {thing} {word}.",
    "Such a {word} {thing}, I told all my friends.",
    "My {thing} arrived on {day} and it is {word}.",
    "Honestly, the {thing} is {word} and {second}.",
    "A {word} {thing}, and the {other} was {second} too.",
    "We thought that the {thing} would be {opposite}, but it was {word}.",
    "Everybody said that the {thing} was {opposite}. I think it is {word}.",
    "The {thing} is not {opposite} at all, it is {word}.",
)
FACTS = (
    "The {thing} arrived on {day}.",
    "The {thing} is {colour} and comes with a {other}.",
    "I bought the {thing} in a shop near the station.",
    "On {day} we had the {thing} and then the {other}.",
    "The {thing} comes in {colour} or {colour2}.",
    "My sister has the same {thing}.",
    "This {thing} replaces the one we had before.",
    "The {thing} was delivered together with the {other}.",
    "There is a {colour} {thing} next to the {other}.",
    "They sell the {thing} from {day} on.",
)


def sentiment_example(rng: random.Random, split: Split) -> tuple[str, str]:
    """Return the user's text and its class."""
    answer = rng.choice(("positive", "negative", "neutral"))
    same, opposite = (GOOD, BAD) if answer == "positive" else (BAD, GOOD)
    word, second = rng.sample(words_of(same, split), 2)
    thing, other = rng.sample(words_of(THINGS, split), 2)
    colour, colour2 = rng.sample(COLOURS, 2)
    review = rng.choice(FACTS if answer == "neutral" else OPINIONS).format(
        word=word,
        second=second,
        opposite=rng.choice(words_of(opposite, split)),
        thing=thing,
        other=other,
        day=rng.choice(DAYS),
        colour=colour,
        colour2=colour2,
    )
    # "a excellent hotel" would give the sentiment away to nobody, but it reads badly.
    for vowel in "aeiou":
        review = review.replace(f" a {vowel}", f" an {vowel}").replace(f"A {vowel}", f"An {vowel}")
    return f"{INSTRUCTION}\n\n review: {review}", answer
