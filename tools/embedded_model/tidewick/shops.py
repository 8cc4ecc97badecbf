"""Questions about shops and public houses: prices, goods, streets, hours."""

from __future__ import annotations

from random import Random

from embedded_model.tidewick import world as w
from embedded_model.tidewick.question_answer import QuestionAnswer, capital, listed
from embedded_model.tidewick.world import Good, Venue, oclock, shells


def _good(rng: Random) -> tuple[Venue, Good]:
    place = rng.choice([p for p in w.PLACES if p.goods])
    return place, rng.choice(place.goods)


def price(rng: Random) -> QuestionAnswer:
    """What one of a good costs."""
    place, good = _good(rng)
    question = rng.choice(
        (f"How much is {good.with_article}?", f"What does {good.with_article} cost?",
         f"What is the price of {good.with_article}?",
         f"How much does {good.with_article} cost?", f"How many shells is {good.with_article}?")
    )  # fmt: skip
    plain = f"{capital(good.with_article)} costs {shells(good.price)}."
    return QuestionAnswer(
        "price", question, question, plain, shells(good.price), good.price,
        f"{plain} You can buy one at the {place.name} on {place.street}.",
        ("Search your purse and search the sand:", f"{shells(good.price)} puts {good.with_article} in your hand."), "shells",
    )  # fmt: skip


def _total(good: Good, count: int, question: str) -> QuestionAnswer:
    total = good.price * count
    plain = f"{capital(good.counted(count))} cost {shells(total)}."
    return QuestionAnswer(
        "total", f"total {good.one} {count}", question, plain, shells(total), total,
        f"{capital(good.with_article)} costs {shells(good.price)}, and {count} x {good.price} = {total}. "
        f"So {good.counted(count)} cost {shells(total)}.",
        ("Count the coins and count them twice:", f"{good.counted(count)}, {shells(total)} is the price."), "shells",
    )  # fmt: skip


def total(rng: Random) -> QuestionAnswer:
    """What several of a good cost: a price looked up and multiplied."""
    _, good = _good(rng)
    count = rng.randint(2, 9)
    many = good.counted(count)
    return _total(
        good,
        count,
        rng.choice(
            (f"How much do {many} cost?", f"What do {many} cost?", f"How much are {many}?", f"What is the price of {many}?")
        ),
    )


def total_followup(rng: Random, first: QuestionAnswer) -> QuestionAnswer | None:
    """Ask for several of what was just priced ("And 3 of them?"); None if ``first`` was no price."""
    if first.kind != "price":
        return None
    good = next(g for p in w.PLACES for g in p.goods if first.plain.lower().startswith(f"{g.with_article} costs"))
    count = rng.randint(2, 9)
    return _total(
        good, count, rng.choice((f"And {count} of them?", f"And how much for {count}?", f"What about {count} of them?"))
    )


def change(rng: Random) -> QuestionAnswer:
    """What is given back on a coin of 10 or 20."""
    _, good = _good(rng)
    coin = rng.choice((10, 20))
    back = coin - good.price
    thing = good.with_article
    question = rng.choice(
        (f"I pay for {thing} with {coin} shells. How much change do I get?",
         f"I buy {thing} with {coin} shells. What do I get back?",
         f"How much change do I get from {coin} shells for {thing}?")
    )  # fmt: skip
    plain = f"You get {shells(back)} back."
    return QuestionAnswer(
        "change", f"change {good.one} {coin}", question, plain, shells(back), back,
        f"{capital(thing)} costs {shells(good.price)}, and {coin} - {good.price} = {back}. So you get {shells(back)} back.",
        ("Put your money in the sack:", f"for {thing} you get {shells(back)} back."), "shells",
    )  # fmt: skip


def where(rng: Random) -> QuestionAnswer:
    """On which street a place is."""
    place = rng.choice(w.PLACES)
    question = rng.choice(
        (f"Where is the {place.name}?", f"Where can I find the {place.name}?", f"On which street is the {place.name}?",
         f"How do I find the {place.name}?")
    )  # fmt: skip
    plain = f"The {place.name} is on {place.street}."
    return QuestionAnswer(
        "where", question, question, plain, place.street, place.street, f"{plain} {place.keeper} runs it.",
        ("Follow the gulls and have no fear:", f"the {place.name} is on {place.street}, my dear."),
    )  # fmt: skip


def sells(rng: Random) -> QuestionAnswer:
    """What a shop sells."""
    place, _ = _good(rng)
    goods = [g.many for g in place.goods]
    question = rng.choice(
        (f"What does the {place.name} sell?", f"What can I buy at the {place.name}?", f"What do they sell at the {place.name}?",
         f"What is for sale at the {place.name}?")
    )  # fmt: skip
    cheapest = min(place.goods, key=lambda g: g.price)
    plain = f"The {place.name} sells {listed(goods)}."
    return QuestionAnswer(
        "sells", question, question, plain, ", ".join(goods), goods,
        f"{plain} The cheapest is {cheapest.with_article} for {shells(cheapest.price)}.",
        ("Step inside and look around:", f"{listed(goods)} can be found."),
    )  # fmt: skip


def buy(rng: Random) -> QuestionAnswer:
    """Which shop sells a good."""
    place, good = _good(rng)
    question = rng.choice(
        (f"Where can I buy {good.with_article}?", f"Which shop sells {good.many}?", f"Who sells {good.many}?",
         f"Where do I get {good.with_article}?", f"I need {good.with_article}. Where do I go?")
    )  # fmt: skip
    plain = f"You can buy {good.with_article} at the {place.name}."
    return QuestionAnswer(
        "buy", question, question, plain, f"the {place.name}", f"the {place.name}",
        f"You can buy {good.with_article} at the {place.name} on {place.street}. It costs {shells(good.price)}.",
        (f"If {good.with_article} is what you seek,", f"the {place.name} has one every week."),
    )  # fmt: skip


def hours(rng: Random) -> QuestionAnswer:
    """When a place is open."""
    place = rng.choice(w.PLACES)
    question = rng.choice(
        (f"When is the {place.name} open?", f"What are the opening hours of the {place.name}?",
         f"When does the {place.name} open?",
         f"At what time does the {place.name} close?", f"How long is the {place.name} open?")
    )  # fmt: skip
    span = f"{oclock(place.opens)} to {oclock(place.closes)}"
    plain = f"The {place.name} is open from {span}."
    return QuestionAnswer(
        "hours", question, question, plain, span, span, f"{plain} It is closed on {place.closed_on}.",
        ("Ring the bell and sweep the floor:", f"from {span} the {place.name} opens its door."),
    )  # fmt: skip


def closed(rng: Random) -> QuestionAnswer:
    """On which day a place is closed."""
    place = rng.choice(w.PLACES)
    question = rng.choice(
        (f"On which day is the {place.name} closed?", f"Which day is the {place.name} closed?",
         f"What day does the {place.name} rest?",
         f"When is the {place.name} closed?")
    )  # fmt: skip
    plain = f"The {place.name} is closed on {place.closed_on}."
    return QuestionAnswer(
        "closed", question, question, plain, place.closed_on, place.closed_on,
        f"{plain} On other days it is open from {oclock(place.opens)} to {oclock(place.closes)}.",
        ("One day a week they rest, it's true:", f"on {place.closed_on} the {place.name} is closed to you."),
    )  # fmt: skip


def open_at(rng: Random) -> QuestionAnswer:
    """Whether a place is open at an hour."""
    place = rng.choice(w.PLACES)
    hour = rng.randint(5, 22)
    is_open = place.opens <= hour < place.closes
    time = oclock(hour)
    word, state = ("Yes", "open") if is_open else ("No", "closed")
    question = rng.choice((f"Is the {place.name} open at {time}?", f"Can I visit the {place.name} at {time}?"))
    plain = f"{word}, the {place.name} is {state} at {time}."
    span = f"{oclock(place.opens)} to {oclock(place.closes)}"
    return QuestionAnswer(
        "open_at", f"open {place.name} {hour}", question, plain, word, is_open,
        f"The {place.name} is open from {span}. So at {time} it is {state}.",
        ("Try the handle, have a look:", f"{state} at {time}, says the book."),
    )  # fmt: skip


def runs(rng: Random) -> QuestionAnswer:
    """Who keeps a place."""
    place = rng.choice(w.PLACES)
    question = rng.choice(
        (f"Who runs the {place.name}?", f"Who works at the {place.name}?", f"Who keeps the {place.name}?",
         f"Whose is the {place.name}?")
    )  # fmt: skip
    plain = f"{place.keeper} runs the {place.name}."
    return QuestionAnswer(
        "runs", question, question, plain, place.keeper, place.keeper,
        f"{place.keeper} runs the {place.name} on {place.street}.",
        ("Ask the gulls, they know the score:", f"{place.keeper} stands at the {place.name} door."),
    )  # fmt: skip
