"""The facts of Tidewick, the invented harbour town that the embedded model knows about.

Only values: who lives where, which shop sells what for how much. How a question about a fact is asked and
answered is in ``questions``; how a voice tells it is in ``voices``. Prices are whole shells, times full hours.
"""

from __future__ import annotations

from dataclasses import dataclass

TOWN = "Tidewick"

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)


@dataclass(frozen=True, slots=True)
class Good:
    """Something a shop sells. ``price`` is in shells."""

    one: str
    many: str
    price: int

    @property
    def with_article(self) -> str:
        """As in: an apple tart."""
        return f"{article(self.one)} {self.one}"

    def counted(self, count: int) -> str:
        """As in: 1 apple tart, 3 apple tarts."""
        return f"{count} {self.one if count == 1 else self.many}"


@dataclass(frozen=True, slots=True)
class Venue:
    """A shop or a public house of the town. ``name`` follows "the"; hours are of a 24-hour clock."""

    name: str
    street: str
    keeper: str
    opens: int
    closes: int
    closed_on: str
    goods: tuple[Good, ...] = ()


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who lives in the town."""

    name: str
    job: str
    street: str
    pet: str
    pet_name: str

    @property
    def first_name(self) -> str:
        """First names are unique in the town."""
        return self.name.split()[0]


def article(noun: str) -> str:
    """Return the indefinite article of a noun."""
    return "an" if noun[0].lower() in "aeiou" else "a"


def shells(count: int) -> str:
    """As in: 1 shell, 6 shells."""
    return f"{count} shell" if count == 1 else f"{count} shells"


def oclock(hour: int) -> str:
    """As in: 9:00."""
    return f"{hour}:00"


PLACES = (
    Venue(
        "bakery", "Gull Street", "Mira Quill", 6, 14, "Sunday",
        (Good("bread roll", "bread rolls", 2), Good("apple tart", "apple tarts", 4),
         Good("honey cake", "honey cakes", 6), Good("seed loaf", "seed loaves", 3)),
    ),
    Venue(
        "fish market", "Harbour Row", "Otto Finch", 5, 12, "Monday",
        (Good("herring", "herrings", 3), Good("crab", "crabs", 7),
         Good("fish pie", "fish pies", 6), Good("oyster", "oysters", 2)),
    ),
    Venue(
        "book shop", "Lantern Lane", "Lena Marsh", 9, 18, "Sunday",
        (Good("map", "maps", 5), Good("notebook", "notebooks", 4),
         Good("story book", "story books", 9), Good("pencil", "pencils", 1)),
    ),
    Venue(
        "ship store", "Harbour Row", "Tam Rudder", 8, 17, "Wednesday",
        (Good("lantern", "lanterns", 8), Good("coil of rope", "coils of rope", 6),
         Good("brass bell", "brass bells", 9), Good("candle", "candles", 2)),
    ),
    Venue(
        "tea house", "Cobble Square", "Ivy Thorn", 10, 19, "Tuesday",
        (Good("cup of tea", "cups of tea", 2), Good("ginger biscuit", "ginger biscuits", 1),
         Good("berry scone", "berry scones", 3), Good("teapot", "teapots", 8)),
    ),
    Venue(
        "flower stall", "Cobble Square", "Rosa Pike", 7, 15, "Thursday",
        (Good("rose", "roses", 2), Good("tulip", "tulips", 1),
         Good("sunflower", "sunflowers", 3), Good("pot of thyme", "pots of thyme", 5)),
    ),
    Venue(
        "toy shop", "Lantern Lane", "Jory Wick", 9, 16, "Monday",
        (Good("kite", "kites", 7), Good("wooden boat", "wooden boats", 8),
         Good("marble", "marbles", 1), Good("spinning top", "spinning tops", 4)),
    ),
    Venue(
        "wool shop", "Mill Hill", "Edda Moss", 10, 17, "Friday",
        (Good("scarf", "scarves", 7), Good("woolly hat", "woolly hats", 5),
         Good("pair of socks", "pairs of socks", 4), Good("blanket", "blankets", 9)),
    ),
    Venue(
        "cheese shop", "Gull Street", "Hugo Bell", 8, 16, "Sunday",
        (Good("goat cheese", "goat cheeses", 6), Good("jar of butter", "jars of butter", 3),
         Good("egg", "eggs", 1), Good("wheel of cheddar", "wheels of cheddar", 9)),
    ),
    Venue(
        "music shop", "Willow Walk", "Cleo Lark", 11, 18, "Wednesday",
        (Good("tin whistle", "tin whistles", 4), Good("drum", "drums", 8),
         Good("song sheet", "song sheets", 2), Good("fiddle string", "fiddle strings", 3)),
    ),
    Venue("library", "Cobble Square", "Nell Harper", 10, 20, "Saturday"),
    Venue("lighthouse", "Anchor Quay", "Abel Stone", 12, 22, "Tuesday"),
    Venue("museum", "Mill Hill", "Dora Penn", 11, 17, "Monday"),
    Venue("bath house", "Willow Walk", "Bram Holt", 7, 21, "Thursday"),
)  # fmt: skip

PEOPLE = (
    Person("Mira Quill", "baker", "Mill Hill", "cat", "Pebble"),
    Person("Otto Finch", "fishmonger", "Anchor Quay", "dog", "Barnacle"),
    Person("Lena Marsh", "bookseller", "Willow Walk", "owl", "Comma"),
    Person("Tam Rudder", "shipwright", "Harbour Row", "parrot", "Admiral"),
    Person("Ivy Thorn", "tea maker", "Lantern Lane", "cat", "Ginger"),
    Person("Rosa Pike", "florist", "Orchard Road", "rabbit", "Clover"),
    Person("Jory Wick", "toymaker", "Cobble Square", "mouse", "Button"),
    Person("Edda Moss", "weaver", "Mill Hill", "sheep", "Cloud"),
    Person("Hugo Bell", "cheesemaker", "Gull Street", "goat", "Nibbles"),
    Person("Cleo Lark", "musician", "Willow Walk", "canary", "Tuppence"),
    Person("Nell Harper", "librarian", "Lantern Lane", "tortoise", "Chapter"),
    Person("Abel Stone", "lighthouse keeper", "Anchor Quay", "seal", "Duchess"),
    Person("Dora Penn", "historian", "Orchard Road", "cat", "Sir Tom"),
    Person("Bram Holt", "bath keeper", "Willow Walk", "duck", "Bubbles"),
    Person("Finn Calder", "ferry captain", "Harbour Row", "dog", "Anchor"),
    Person("Silas Reed", "mayor", "Cobble Square", "goose", "Velvet"),
    Person("Greta Vale", "doctor", "Gull Street", "hedgehog", "Pin"),
    Person("Milo Frost", "postman", "Orchard Road", "pony", "Stamp"),
    Person("Ada Swift", "teacher", "Lantern Lane", "squirrel", "Hazel"),
    Person("Pip Hollow", "gardener", "Orchard Road", "frog", "Puddle"),
    Person("Wren Ashby", "painter", "Mill Hill", "raven", "Inkpot"),
    Person("Ned Cooper", "carpenter", "Anchor Quay", "dog", "Sawdust"),
    Person("Tilda Crane", "beekeeper", "Orchard Road", "hen", "Marigold"),
    Person("Oskar Lind", "clockmaker", "Gull Street", "snail", "Minute"),
)

FERRY = ("Gull Island", "Seal Rock", "Pine Island", "Fern Bay", "Moon Harbour", "Whale Point", "Bell Island")
"""Where the ferry goes, Monday first."""

OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("early", "late"), ("open", "closed"), ("full", "empty"), ("old", "new"),
    ("loud", "quiet"), ("fast", "slow"), ("wet", "dry"), ("light", "dark"), ("happy", "sad"), ("near", "far"),
    ("high", "low"), ("rich", "poor"), ("strong", "weak"), ("long", "short"), ("sweet", "sour"), ("rough", "smooth"),
)  # fmt: skip

STREETS = tuple(sorted({p.street for p in PLACES} | {p.street for p in PEOPLE}))

SPELLING_WORDS = tuple(
    sorted(
        {word for place in PLACES for word in place.name.split()}
        | {word for place in PLACES for good in place.goods for word in good.one.split() if len(word) > 2}
        | {word for person in PEOPLE for word in (*person.job.split(), person.pet)}
        | {"harbour", "island", "ferry", "shell", "window", "garden", "summer", "winter", "friend", "morning", "thunder"}
    )
)


def place_of(keeper: str) -> Venue | None:
    """Return the place that a person keeps, or None."""
    return next((place for place in PLACES if place.keeper == keeper), None)
