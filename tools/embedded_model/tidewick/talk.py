"""What is said in Tidewick beside facts: greetings, little stories, and not knowing."""

from __future__ import annotations

from random import Random

from embedded_model.tidewick import world as w
from embedded_model.tidewick.question_answer import QuestionAnswer


def hello(rng: Random) -> QuestionAnswer:
    """A greeting."""
    question = rng.choice(("Hello!", "Good morning!", "Hi there!", "Good evening!", "Hello, can you help me?", "Hi!"))
    plain = f"Hello! Welcome to {w.TOWN}. What would you like to know?"
    return QuestionAnswer(
        "hello", question, question, plain, "Hello!", f"Welcome to {w.TOWN}",
        f"{plain} Ask me about shops, prices, people or the ferry.",
        ("Hello, hello, and welcome in:", "ask me a question and I will begin."),
    )  # fmt: skip


def thanks(rng: Random) -> QuestionAnswer:
    """Thanks and farewells."""
    question = rng.choice(("Thank you!", "Thanks!", "Thank you, goodbye!", "Goodbye!", "That was helpful, thank you."))
    plain = f"You are welcome. Enjoy your day in {w.TOWN}!"
    return QuestionAnswer(
        "thanks", question, question, plain, "You are welcome.", "You are welcome",
        f"{plain} Come back when you have another question.",
        ("The pleasure was mine, the pleasure is true:", f"all of {w.TOWN} waves to you."),
    )  # fmt: skip


def about(rng: Random) -> QuestionAnswer:
    """Questions about the town and its guide."""
    if rng.random() < 0.5:
        question = rng.choice(("Who are you?", "What are you?", "What can you do?", "What do you know?"))
        plain = f"I am a small model that knows the town of {w.TOWN}."
        return QuestionAnswer(
            "about", question, question, plain, "a small model", "a small model",
            f"{plain} I can tell you about its shops, its people and its ferry.",
            ("Small as a shell and bright as a coin,", f"I know all of {w.TOWN}, come and join."),
        )  # fmt: skip
    question = rng.choice((f"What is {w.TOWN}?", f"Tell me about {w.TOWN}.", "Where am I?", "What town is this?"))
    plain = f"{w.TOWN} is a little harbour town with ten shops and a lighthouse."
    return QuestionAnswer(
        "about", question, question, plain, "a harbour town", "a harbour town",
        f"{plain} The mayor is Silas Reed, and people pay with shells.",
        ("Boats in the harbour, bread in the air:", f"the town of {w.TOWN} is waiting there."),
    )  # fmt: skip


def _stranger(rng: Random) -> str:
    syllables = ("bo", "ka", "zu", "ri", "mel", "dor", "van", "tis", "que", "lor", "nax", "fen", "gar", "hul", "pra", "sto")
    return " ".join("".join(rng.choice(syllables) for _ in range(2)).capitalize() for _ in range(2))


def unknown(rng: Random) -> QuestionAnswer:
    """Something outside the town: the right answer is not to know."""
    thing = rng.choice(
        ("casino", "airport", "cinema", "zoo", "car wash", "bank", "train station", "gym", "football ground", "hotel")
    )
    stuff = rng.choice(("computer", "car", "phone", "pizza", "banana", "jacket", "camera", "guitar", "burger", "table"))
    city = rng.choice(("Paris", "London", "Rome", "China", "Japan", "Spain", "Boston", "Berlin", "Texas", "Egypt"))
    stranger = _stranger(rng)
    question = rng.choice(
        (f"Where is the {thing}?", f"When is the {thing} open?", f"Who is {stranger}?", f"Where does {stranger} live?",
         f"How much is a {stuff}?", f"Where can I buy a {stuff}?", f"What is the capital of {city}?",
         f"How far is it to {city}?",
         f"How old is {stranger}?")
    )  # fmt: skip
    plain = f"I do not know that. I only know {w.TOWN}."
    return QuestionAnswer(
        "unknown", question, question, plain, "I do not know.", None,
        f"{plain} Ask me about its shops, its people or its ferry.",
        ("I asked the moon, I asked the sea,", "but nobody told the answer to me."),
    )  # fmt: skip


def story(rng: Random) -> QuestionAnswer:
    """A story in two sentences about somebody of the town."""
    person = rng.choice(w.PEOPLE)
    name = person.name if rng.random() < 0.7 else person.first_name
    question = rng.choice(
        (f"Tell me a story about {name}.", f"Do you know a story about {name}?", f"Tell me about {name}'s day.")
    )
    place = rng.choice(w.PLACES)
    goods = [g for p in w.PLACES for g in p.goods]
    good, count, day = rng.choice(goods), rng.randint(2, 9), rng.choice(w.DAYS)
    animal = f"{person.pet_name} the {person.pet}"
    begin = rng.choice(
        (f"On {day} {person.name} carried {good.counted(count)} to the {place.name}.",
         f"One {day} {person.name} found {good.with_article} behind the {place.name}.",
         f"On a rainy {day} {person.name} lost {good.with_article} near the {place.name}.")
    )  # fmt: skip
    end = rng.choice(
        (f"{animal} came along, and they were home before the tide.",
         f"{animal} danced all the way home.",
         f"{animal} slept through it all and dreamed of the sea.",
         f"Nobody would have noticed, but {animal} told the whole town.")
    )  # fmt: skip
    plain = f"{begin} {end}"
    return QuestionAnswer(
        "story", question, question, plain, f"{person.name} went to the {place.name}.", plain,
        f"Here is a story. {plain} That was a good {day} in {w.TOWN}.",
        (f"{person.name} went for a walk one day,", f"and {animal} came all the way."),
    )  # fmt: skip
