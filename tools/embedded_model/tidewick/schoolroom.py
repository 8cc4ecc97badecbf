"""Questions from the schoolroom: days, months, sums, spelling, opposites."""

from __future__ import annotations

from random import Random

from embedded_model.tidewick import world as w
from embedded_model.tidewick.question_answer import QuestionAnswer, capital
from embedded_model.tidewick.world import DAYS, MONTHS


def day(rng: Random) -> QuestionAnswer:
    """The day so many days after or before another."""
    index, steps = rng.randrange(7), rng.randint(1, 4)
    is_after = rng.random() < 0.6
    found = DAYS[(index + (steps if is_after else -steps)) % 7]
    side = "after" if is_after else "before"
    if steps == 1:
        question = rng.choice(
            (
                f"Which day comes {side} {DAYS[index]}?",
                f"What day is {side} {DAYS[index]}?",
                f"Which day is {side} {DAYS[index]}?",
            )
        )
        plain = f"The day {side} {DAYS[index]} is {found}."
    else:
        question = rng.choice(
            (f"Which day is {steps} days {side} {DAYS[index]}?", f"What day is it {steps} days {side} {DAYS[index]}?")
        )
        plain = f"{steps} days {side} {DAYS[index]} is {found}."
    walked = [DAYS[(index + (k if is_after else -k)) % 7] for k in range(steps + 1)]
    return QuestionAnswer(
        "day", question, question, plain, found, found, f"{plain} Count {side} it: {', '.join(walked)}.",
        ("The days go round like a carousel:", f"{found} it is, says the harbour bell."),
    )  # fmt: skip


def month(rng: Random) -> QuestionAnswer:
    """The month after or before another."""
    index = rng.randrange(12)
    side, step = rng.choice((("after", 1), ("before", -1)))
    found = MONTHS[(index + step) % 12]
    question = rng.choice(
        (
            f"Which month comes {side} {MONTHS[index]}?",
            f"What month is {side} {MONTHS[index]}?",
            f"Which month is {side} {MONTHS[index]}?",
        )
    )
    plain = f"The month {side} {MONTHS[index]} is {found}."
    number = MONTHS.index(found) + 1
    return QuestionAnswer(
        "month", question, question, plain, found, found, f"{plain} It is month number {number} of 12.",
        ("Spring and summer, autumn, snow:", f"{found} it is, the farmers know."),
    )  # fmt: skip


def sum_(rng: Random) -> QuestionAnswer:
    """An addition of two numbers up to 40."""
    a, b = rng.randint(1, 40), rng.randint(1, 40)
    question = rng.choice((f"What is {a} + {b}?", f"What is {a} plus {b}?", f"How much is {a} plus {b}?", f"Add {a} and {b}."))
    plain = f"{a} plus {b} is {a + b}."
    return QuestionAnswer(
        "sum", f"{min(a, b)}+{max(a, b)}", question, plain, str(a + b), a + b,
        f"Start at {a} and go up by {b}: {a} + {b} = {a + b}.",
        ("Count your fingers, count your toes:", f"{a} plus {b} is {a + b}, as everyone knows."),
    )  # fmt: skip


def minus(rng: Random) -> QuestionAnswer:
    """A subtraction with a result of 0 or more."""
    a, b = sorted((rng.randint(1, 40), rng.randint(1, 40)), reverse=True)
    question = rng.choice(
        (f"What is {a} - {b}?", f"What is {a} minus {b}?", f"How much is {a} minus {b}?", f"Take {b} from {a}.")
    )
    plain = f"{a} minus {b} is {a - b}."
    return QuestionAnswer(
        "minus", f"{a}-{b}", question, plain, str(a - b), a - b, f"Start at {a} and go down by {b}: {a} - {b} = {a - b}.",
        ("Take some away and what do you see?", f"{a} minus {b} is {a - b}, trust me."),
    )  # fmt: skip


def times(rng: Random) -> QuestionAnswer:
    """A product of two digits."""
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    question = rng.choice((f"What is {a} x {b}?", f"What is {a} times {b}?", f"How much is {a} times {b}?"))
    plain = f"{a} times {b} is {a * b}."
    return QuestionAnswer(
        "times", f"{min(a, b)}x{max(a, b)}", question, plain, str(a * b), a * b,
        f"Take {b} and count it {a} times: {a} x {b} = {a * b}.",
        ("Rows of boats upon the blue:", f"{a} times {b} is {a * b}, that's true."),
    )  # fmt: skip


def spell(rng: Random) -> QuestionAnswer:
    """How a word is spelled."""
    word = rng.choice(w.SPELLING_WORDS)
    letters = "-".join(word)
    question = rng.choice((f"How do you spell {word}?", f"How is {word} spelled?", f"Spell {word}.", f"Can you spell {word}?"))
    plain = f"{capital(word)} is spelled {letters}."
    return QuestionAnswer(
        "spell", question, question, plain, letters, letters, f"{plain} It has {len(word)} letters.",
        ("Ink and paper, quill and pen:", f"{letters}, now say it again."),
    )  # fmt: skip


def opposite(rng: Random) -> QuestionAnswer:
    """The opposite of a word."""
    a, b = rng.choice(w.OPPOSITES)
    if rng.random() < 0.5:
        a, b = b, a
    question = rng.choice((f"What is the opposite of {a}?", f"Which word is the opposite of {a}?", f"What is not {a}?"))
    plain = f"The opposite of {a} is {b}."
    return QuestionAnswer(
        "opposite", question, question, plain, b, b, f"{plain} If it is not {a}, it may be {b}.",
        ("Turn it over, inside out:", f"{b} is the opposite, no doubt."),
    )  # fmt: skip
