"""Owns the words that examples are made of, and the one rule that splits them into training and held-out.

Every word, made-up name and number belongs to exactly one split, decided by its own text: no example of one split can
contain a column word, a table name or a value of the other, whatever the seed.
"""

import random
import zlib
from collections.abc import Callable, Sequence
from typing import Literal

Split = Literal["train", "held-out"]

# The words of the seed page's two questions are held out, so that the demo asks for what training never saw.
SEED_WORDS = frozenset({
    "icao", "airport", "nationality", "elector", "lilongwe", "anchero", "pantaleone", "international",
    "table_name_74", "table_name_11", "74", "11",
})  # fmt: skip


def word_list(text: str) -> list[str]:
    """Return the words of a text that is written as a list; a literal list would take five times the lines."""
    return text.split()


def split_of(word: str) -> Split:
    """Return the split that owns the word: about one in four is held out."""
    if word.lower() in SEED_WORDS or zlib.crc32(word.lower().encode()) % 4 == 0:
        return "held-out"
    return "train"


def words_of(words: Sequence[str], split: Split) -> list[str]:
    """Return the words that belong to the split, in their order."""
    return [word for word in words if split_of(word) == split]


def draw(make: Callable[[], str], split: Split) -> str:
    """Call `make` until what it makes belongs to the split."""
    while split_of(word := make()) != split:
        pass
    return word


PERSON_COLUMNS = word_list("""
    elector coach winner driver author director player captain manager artist composer writer singer actor teacher
    president governor senator incumbent candidate opponent rider jockey trainer champion nominee chairman goalkeeper
    pitcher skipper mayor editor producer presenter narrator designer architect surgeon pilot astronaut librarian
    owner sponsor partner referee umpire secretary inventor sculptor guest host loser spouse tenor consort runner
    finalist swimmer scorer
""")

PLACE_COLUMNS = word_list("""
    airport city country venue location stadium hometown county district province region birthplace harbour island
    village capital destination origin arena circuit ground course headquarters residence college school university
    state territory parish borough campus station terminal depot garrison town lake valley nationality nation
    monastery prefecture canton museum
""")

TITLE_COLUMNS = word_list("""
    title album song episode film book series play party club team constructor engine manufacturer label publisher
    network platform chassis award role character genre position status result surface competition tournament league
    conference division format language religion species category event theme instrument vessel ship locomotive class
    brand model operator franchise mascot nickname colour material tribe family magazine newspaper festival opera
    ballet poem essay studio channel sector industry treaty
""")

CODE_COLUMNS = word_list("""
    icao iata score record code callsign isbn serial frequency date kickoff premiere deadline birthday time released
    debut opened closed signed aired launched elected postcode identifier version license reference aggregate
""")

NUMBER_COLUMNS = word_list("""
    year points goals attendance population wins losses rank laps seats age weight height length speed games rounds
    votes draws apps gold silver bronze round grid season week pick crowd area density elevation revenue profit budget
    salary price capacity members students floors stories tries assists rebounds blocks steals yards fouls matches
    sets pages copies viewers share rating heat lane poles podiums starts caps entries decks crew depth width distance
    duration mass volume rainfall employees branches
""")

MODIFIERS = word_list("""
    home away first last original opening official former main second final national regional overall previous current
    local annual weekly secondary primary upper lower junior senior best worst new old annual leading winning losing
    common binomial scientific english french regular special early late maiden active domestic foreign public private
    northern southern eastern western central royal federal daily monthly outer inner birth release production host
    entry field road track team series event race season
""")

TABLE_WORDS = word_list("""
    employees matches flights customers orders books albums songs films teams players races stations ships museums
    concerts schools hospitals elections rivers mountains bridges battles satellites airports castles lakes recipes
    patients invoices products suppliers buildings parks stadiums festivals awards episodes departments courses
    students vehicles railways volcanoes dinosaurs planets temples
""")

PLACE_SUFFIXES = [
    "international airport",
    *word_list("park stadium university county airport island city road arena harbour street court college"),
    *word_list("valley bridge hill beach heights state falls bay cathedral junction square lake castle"),
]

TITLE_WORDS = word_list("""
    the a of and in to red blue silver dark golden lost last night river dream house king queen summer winter heart
    stone fire light shadow road train city moon star ocean garden mirror secret broken silent wild little great long
    journey letter window paper glass island storm morning midnight stranger brother sister daughter hunter soldier
    doctor wolf tiger eagle raven dragon forest mountain desert thunder rain snow song dance story history return rise
    fall day war peace love hope honour glory victory blood gold iron steel racing rovers united wanderers hard clay
    grass retired labour democrat republican progressive alliance freedom union motor works systems group records
    television radio sports classic premier super grand open championship cup trophy shield masters
""")

SYLLABLES = word_list("""
    an che ro pan ta le o ne li long we ma ri ka to sa vi el du bor gre ni mo ha ja ki lu per quin ras ster tor ul var
    wen xa yo zel bra cor dan fen gil hol ing jor kel lan mer nor ost pel rud sil tam und vel wick yar zan ber cle dro
    fa gu hi is ju kri la mi na om pi ra so ti us
""")

MONTHS = word_list("""
    January February March April May June July August September October November December
""")


def made_up_word(rng: random.Random, split: Split) -> str:
    """Return a capitalised name of two to four syllables, such as Anchero."""
    return draw(lambda: "".join(rng.choices(SYLLABLES, k=rng.choice((2, 2, 3, 3, 4)))), split).capitalize()


def letters(rng: random.Random, split: Split) -> str:
    """Return two to four capital letters, such as ICAO."""
    return draw(lambda: "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZAEIO", k=rng.choice((2, 3, 4)))), split)


def number(rng: random.Random, low: int, high: int, split: Split) -> int:
    """Return a number of the split from `low` to `high`, both included."""
    return int(draw(lambda: str(rng.randint(low, high)), split))
