"""The closed vocabulary of the embedded world: nouns by category, adjectives with opposites, names, numbers.

Every list is a tuple, so iteration order, and with it every draw, is the same on every machine.
"""

CATEGORIES: dict[str, tuple[str, ...]] = {
    "fruit": ("apple", "pear", "plum", "grape", "lemon"),
    "animal": ("cat", "dog", "horse", "goat", "bear"),
    "tool": ("hammer", "drill", "axe", "rake", "saw"),
    "garment": ("hat", "coat", "shirt", "sock", "belt"),
    "color": ("red", "blue", "green", "black", "white"),
}
PLURALS: dict[str, str] = {name: name + "s" for name in CATEGORIES}
SINGULAR_OF: dict[str, str] = {plural: name for name, plural in PLURALS.items()}

# Colors take no article: "is red a color?".
_MASS = frozenset(CATEGORIES["color"])
ITEMS: tuple[str, ...] = tuple(item for items in CATEGORIES.values() for item in items)
THINGS: tuple[str, ...] = tuple(item for item in ITEMS if item not in _MASS)
CATEGORY_OF: dict[str, str] = {item: name for name, items in CATEGORIES.items() for item in items}

_OPPOSITE_PAIRS = (
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("happy", "sad"), ("old", "new"), ("wet", "dry"),
)  # fmt: skip
OPPOSITE: dict[str, str] = {a: b for pair in _OPPOSITE_PAIRS for a, b in (pair, pair[::-1])}
ADJECTIVES: tuple[str, ...] = tuple(OPPOSITE)

# Things of clearly different size; two things of one tier are never compared.
SIZE_TIERS: tuple[tuple[str, ...], ...] = (
    ("plum", "grape", "lemon", "sock", "apple", "pear"),
    ("horse", "bear", "goat", "dog"),
)
SIZE_OF: dict[str, int] = {thing: tier for tier, things in enumerate(SIZE_TIERS) for thing in things}

# Property -> the category that has it.
PROPERTIES: dict[str, str] = {"food": "fruit", "alive": "animal"}

NAMES: tuple[str, ...] = ("Anna", "Tom", "Ben", "Lucy", "Max", "Nina")
PLACES: tuple[str, ...] = ("Paris", "London", "Rome", "Oslo")
# Events are only filling: they make instructions differ and never change what is right.
EVENTS: tuple[str, ...] = ("party", "lunch", "trip", "game", "class", "fair", "walk", "meal", "match")
GIFTS: tuple[str, ...] = CATEGORIES["garment"] + CATEGORIES["tool"]
GOODS: tuple[str, ...] = ("apples", "hats", "cars", "socks")
REQUESTS: tuple[str, ...] = ("give", "bring", "show", "send")
LIKES: tuple[str, ...] = ("likes", "sees", "wants")
LETTERS: tuple[str, ...] = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
# Everything that is counted or computed stays within 0 to 10.
NUMBERS: tuple[str, ...] = tuple(str(n) for n in range(11))
NUMBER_WORDS: dict[str, str] = {"one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}


def with_article(noun: str) -> str:
    """`noun` with "a" or "an", or alone where English uses no article ("red")."""
    if noun in _MASS:
        return noun
    return ("an " if noun[0] in "aeiou" else "a ") + noun


# The way back from "an apple" to "apple", for reading what a template wrote.
BARE: dict[str, str] = {with_article(noun): noun for noun in ITEMS}
