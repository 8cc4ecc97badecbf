"""Questions about the people of the town and the ferry."""

from __future__ import annotations

from random import Random

from embedded_model.tidewick import world as w
from embedded_model.tidewick.question_answer import QuestionAnswer
from embedded_model.tidewick.world import DAYS, Person


def _name(rng: Random, person: Person) -> str:
    return person.name if rng.random() < 0.6 else person.first_name


def job(rng: Random) -> QuestionAnswer:
    """What somebody does."""
    person = rng.choice(w.PEOPLE)
    name = _name(rng, person)
    question = rng.choice(
        (f"What does {name} do?", f"What is {name}'s job?", f"Who is {name}?", f"What is the work of {name}?")
    )
    plain = f"{person.name} is the {person.job}."
    return QuestionAnswer(
        "job", question, question, plain, person.job, person.job,
        f"{person.name} is the {person.job} and lives on {person.street}.",
        ("Early to rise and late to bed:", f"{person.name} is the {person.job}, as everyone said."),
    )  # fmt: skip


def who(rng: Random) -> QuestionAnswer:
    """Who has a job."""
    person = rng.choice(w.PEOPLE)
    question = rng.choice(
        (f"Who is the {person.job}?", f"What is the name of the {person.job}?", f"Do you know the {person.job}?",
         f"What is the {person.job} called?")
    )  # fmt: skip
    plain = f"The {person.job} is {person.name}."
    return QuestionAnswer(
        "who", question, question, plain, person.name, person.name,
        f"The {person.job} is {person.name}, who lives on {person.street}.",
        ("Ask in the square and ask by the sea:", f"the {person.job} is {person.name}, they told me."),
    )  # fmt: skip


def home(rng: Random) -> QuestionAnswer:
    """Where somebody lives."""
    person = rng.choice(w.PEOPLE)
    name = _name(rng, person)
    question = rng.choice(
        (
            f"Where does {name} live?",
            f"On which street does {name} live?",
            f"Where is {name}'s house?",
            f"Where is the home of {name}?",
        )
    )
    plain = f"{person.name} lives on {person.street}."
    return QuestionAnswer(
        "home", question, question, plain, person.street, person.street,
        f"{person.name}, the {person.job}, lives on {person.street} with {person.pet_name} the {person.pet}.",
        ("When day is done and stars are bright,", f"{person.name} is on {person.street} for the night."),
    )  # fmt: skip


def pet(rng: Random) -> QuestionAnswer:
    """Which animal somebody has."""
    person = rng.choice(w.PEOPLE)
    name = _name(rng, person)
    question = rng.choice(
        (
            f"What pet does {name} have?",
            f"Does {name} have a pet?",
            f"Which animal lives with {name}?",
            f"What is {name}'s pet called?",
        )
    )
    animal = f"{w.article(person.pet)} {person.pet} called {person.pet_name}"
    plain = f"{person.name} has {animal}."
    return QuestionAnswer(
        "pet", question, question, plain, animal, animal, f"{plain} They live on {person.street}.",
        ("Soft of step or loud of song,", f"{animal} tags along."),
    )  # fmt: skip


def ferry(rng: Random) -> QuestionAnswer:
    """Where the ferry goes on a day, or on which day it goes there."""
    index = rng.randrange(7)
    day, island = DAYS[index], w.FERRY[index]
    asks_day = rng.random() < 0.4
    if asks_day:
        question = rng.choice(
            (
                f"On which day does the ferry go to {island}?",
                f"When can I sail to {island}?",
                f"When does the ferry go to {island}?",
            )
        )
    else:
        question = rng.choice(
            (f"Where does the ferry go on {day}?", f"Where does the ferry sail on {day}?", f"Where can I sail on {day}?")
        )
    plain = f"On {day} the ferry goes to {island}."
    short = day if asks_day else island
    return QuestionAnswer(
        "ferry", question, question, plain, short, short, f"{plain} Finn Calder is the captain.",
        ("Wave your hat and feel the spray:", f"on {day} it's {island}, all the way."),
    )  # fmt: skip
