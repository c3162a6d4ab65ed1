"""Owns the extraction task: a sentence and the names of the wanted fields in, one JSON object out."""

import json
import random
from collections.abc import Callable

from demo_words import MONTHS, Split, made_up_word, number, word_list, words_of

INSTRUCTION = "Extract the fields from the sentence as JSON."
JOBS = word_list("""
    baker carpenter plumber nurse pilot farmer lawyer dentist painter tailor butcher teacher chemist surgeon
    electrician librarian fisherman translator gardener journalist mechanic accountant waiter florist geologist
    cashier optician violinist welder barber historian architect barista blacksmith bookkeeper bricklayer chauffeur
    clerk cook courier dancer designer detective driver economist editor firefighter glazier goldsmith guard
    hairdresser jeweller judge lifeguard locksmith magician mathematician mason miner musician notary optometrist
    paramedic pharmacist photographer physicist poet potter programmer roofer sailor sculptor secretary shepherd
    singer shoemaker soldier statistician surveyor tiler trader typist umpire undertaker veterinarian watchmaker
    weaver zoologist
""")
ITEMS = word_list("""
    chairs lamps bicycles notebooks kettles umbrellas guitars blankets shovels tents cameras candles pillows helmets
    ladders mirrors printers radios ropes saddles scissors skis spoons suitcases tables telescopes towels violins
    watches windows drills flutes hammers clocks anchors apples arrows baskets batteries bells belts benches boots
    bottles bowls boxes bracelets bricks brooms brushes buckets buttons cables cages calendars carpets chains chisels
    coats coins combs cups curtains cushions desks diaries dolls dresses drums earrings easels engines envelopes fans
    fences filters flags forks frames gloves goggles hats hinges hoses irons jackets jars jugs keys kites knives
    lanterns locks magnets maps marbles masks mats medals microphones mugs nails necklaces needles nets ovens paddles
    pans pencils pens pianos plates pots pumps purses puzzles racks rings robes rugs sandals scarves screws shelves
    shirts shoes skates sleds socks sponges stamps stools stoves straps sweaters swords thermometers tiles tools toys
    trays trumpets tubes tyres valves vases wallets wheels whistles zippers
""")
Fields = dict[str, str | int]

PERSON = (
    "{name}, a {age}-year-old {job}, lives in {city}.",
    "{name} is {age} years old and works as a {job} in {city}.",
    "The {job} {name} moved to {city} at the age of {age}.",
    "In {city} we met {name}, {age}, who is a {job}.",
    "At {age}, {name} still works in {city} as a {job}.",
)
ORDER = (
    "{customer} ordered {quantity} {item} for {price} dollars.",
    "{customer} paid {price} dollars for {quantity} {item}.",
    "We shipped {quantity} {item} to {customer}, who paid {price} dollars.",
    "An order of {quantity} {item} came from {customer}; the price was {price} dollars.",
    "For {price} dollars, {customer} bought {quantity} {item}.",
)
JOURNEY = (
    "{passenger} travels from {origin} to {destination} on {date}.",
    "On {date}, {passenger} will leave {origin} for {destination}.",
    "The train to {destination} leaves {origin} on {date} with {passenger} on board.",
    "{passenger} booked a seat from {origin} to {destination} for {date}.",
    "A ticket for {passenger}: {origin} to {destination}, {date}.",
)
MATCH = (
    "{winner} beat {loser} {score} in {venue}.",
    "{loser} lost to {winner} in {venue}, the score was {score}.",
    "In {venue}, {winner} won {score} against {loser}.",
    "The match in {venue} ended {score} for {winner}; {loser} went home with nothing.",
    "{loser} had no chance in {venue}: {winner} won {score}.",
)


def json_example(rng: random.Random, split: Split) -> tuple[str, str]:
    """Return the user's text and the object it asks for: the named fields, in the order they are named."""
    make, sentences = rng.choice(_SUBJECTS)
    fields = make(rng, split)
    sentence = rng.choice(sentences).format(**fields)
    wanted = rng.sample(list(fields), rng.choice((2, 3, len(fields))))
    text = f"{INSTRUCTION}\n\n fields: {', '.join(wanted)}\n\n sentence: {sentence}"
    return text, json.dumps({name: fields[name] for name in wanted})


def _full_name(rng: random.Random, split: Split) -> str:
    return f"{made_up_word(rng, split)} {made_up_word(rng, split)}"


def _person(rng: random.Random, split: Split) -> Fields:
    return {
        "name": _full_name(rng, split),
        "age": number(rng, 18, 90, split),
        "job": rng.choice(words_of(JOBS, split)),
        "city": made_up_word(rng, split),
    }


def _order(rng: random.Random, split: Split) -> Fields:
    return {
        "customer": _full_name(rng, split),
        "item": rng.choice(words_of(ITEMS, split)),
        "quantity": number(rng, 2, 99, split),
        "price": number(rng, 100, 9999, split),
    }


def _journey(rng: random.Random, split: Split) -> Fields:
    return {
        "passenger": _full_name(rng, split),
        "origin": made_up_word(rng, split),
        "destination": made_up_word(rng, split),
        "date": f"{number(rng, 1, 31, split)} {rng.choice(words_of(MONTHS, split))}",
    }


def _match(rng: random.Random, split: Split) -> Fields:
    return {
        "winner": made_up_word(rng, split),
        "loser": made_up_word(rng, split),
        "score": f"{number(rng, 20, 60, split)}-{number(rng, 0, 19, split)}",
        "venue": made_up_word(rng, split),
    }


_SUBJECTS: tuple[tuple[Callable[[random.Random, Split], Fields], tuple[str, ...]], ...] = (
    (_person, PERSON),
    (_order, ORDER),
    (_journey, JOURNEY),
    (_match, MATCH),
)
