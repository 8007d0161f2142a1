"""Generates everything that lmlite-tiny ever reads: conversations in the chat template's own format, and plain text.

A conversation is a mode (plain, verse, JSON, thinking, tools) and a few exchanges; every skill knows its exchange in
all modes, so that modes and skills combine. `document(r)` draws one text; the same `random.Random` draws the same.
"""

import json
import random
import string
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
from bpe import END_OF_TEXT, TURN_END
from words import (
    ADJECTIVES,
    ALPHABET,
    ANIMALS,
    CITIES,
    COLOURS,
    DAYS,
    MONTHS,
    NAMES,
    NUMBERS,
    SYSTEM_PROMPTS,
    THINGS,
    TOPICS,
    VERBS,
    pick,
)  # fmt: skip

from tools import Tool, draw_tools, same_kind

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
DO_NOT_KNOW = "I do not know. I am only a toy model."


@dataclass(frozen=True)
class Exchange:
    """One question with its answer in every mode."""

    ask: str
    say: str
    verse: str
    thought: str
    value: Any  # what goes under "answer" in JSON mode


# ---------------------------------------------------------------- words that were never seen before

ONSETS = """b c d f g h j k l m n p r s t v w y z b c d f g h j k l m n p r s t v w y z x br ch cl dr fr gl gn gr kn kr lj
ph pl pr qu sc sh sk sl sp st sw th tr tz wh wr zb zh""".split() + [""] * 6
VOWELS = "a e i o u a e i o u a e i o u ae ai au ea ee ei eu ia ie io oa oe oo ou ue ui y".split()
CODAS = "b c d f g k l m n p r s t v w x z ck ff ld ll lm mb nd ng nk ns nt ph rk rn rp rt ss st sz th tt".split() + [""] * 40


def coin(r: random.Random) -> str:
    """A word like "Krelmo"."""
    syllables = r.choice((1, 2, 2, 2, 3, 3, 4))
    return "".join(r.choice(ONSETS) + r.choice(VOWELS) + r.choice(CODAS) for _ in range(syllables)).capitalize()


def name(r: random.Random) -> str:
    return r.choice(NAMES) if r.random() < 0.3 else coin(r)


def place(r: random.Random) -> str:
    known = r.choice(CITIES) if r.random() < 0.3 else coin(r)
    return f"{r.choice(('New', 'San', 'Old', 'Port'))} {known}" if r.random() < 0.08 else known


def phrase(r: random.Random) -> str:
    """One to six words without a meaning, for copying."""
    pool = (THINGS, ADJECTIVES, COLOURS, VERBS, TOPICS, list(ANIMALS))
    return " ".join(coin(r).lower() if r.random() < 0.2 else r.choice(r.choice(pool)) for _ in range(r.randint(1, 6)))


# ---------------------------------------------------------------- skills

HELD_OUT = 10  # about every tenth pair of summands is never trained on, so that measure.py can ask for it


def held_out(a: int, b: int) -> bool:
    # Scattered, since a kind of pair, such as 3 + 13 and 27 + 7, could not be learned if all of it were held out;
    # and no pair of digits, since all others rest on these.
    return max(a, b) > 9 and zlib.crc32(f"{a} + {b}".encode()) % HELD_OUT == 0


# Small talk of one kind each: questions, answer, verse, what the user did.
POLITE = (
    ("How are you?|How are you doing?|How do you do?|Are you well?|How are you today?",
     "I am fine, thank you. How can I help?", "I feel as well as models may;\nI hope you have a lovely day.",
     "asks how I am"),
    ("Thank you!|Thanks!|Thanks a lot!|Great, thank you.|Thank you very much.",
     "You are welcome.", "You're welcome, friend, it was no chore;\ncome back and ask a little more.", "thanks me"),
    ("Goodbye!|Bye!|See you later.|Bye bye!|Good night!|See you!",
     "Goodbye!", "Goodbye to you, the day is done;\nto talk with you was so much fun.", "says goodbye"),
)  # fmt: skip


def greeting(r: random.Random) -> Exchange:
    if r.random() < 0.3:
        asks, said, verse, what = r.choice(POLITE)
        return Exchange(pick(r, asks), said, verse, f"The user {what}.", said)
    ask = pick(r, "Hello!|Hi!|Hello|Hi|Hey|Hey there!|Hello there!|Good morning!|Good evening!|Good afternoon!|"
                  "Hi there!|Greetings!|Hello, lmlite!|Hi, how are you?|Hello, how are you?|Say hello.|Say hi.|"
                  "Say hello!|hey")  # fmt: skip
    say = "Hello! How can I help?" if r.random() < 0.8 else "Hi! What can I do for you?"
    verse = "Hello to you, hello today;\nI hope that you are well, I say."
    return Exchange(ask, say, verse, "The user greets me. I greet back.", "Hello!")


# What it says of itself: questions, answer, verse, thought, value.
SELF = (
    ("What can you do?|What do you know?|How can you help me?|Help|What are your skills?|What are you able to do?|"
     "What can I ask you?",
     "I can greet, count, add small numbers, tell a short story, rhyme, and call tools. Not more.",
     "I count, I add, I tell a tale,\nand at the rest I mostly fail.",
     "The user asks what I can do.", ["greet", "count", "add", "rhyme"]),
    ("Who made you?|Who trained you?|Where do you come from?|How were you made?|Who built you?|Who created you?",
     "I was trained in half an hour, by a script of the lmlite project.",
     "A script has trained me, short and neat,\nin half an hour, which is a feat.",
     "The user asks where I come from.", "a script of the lmlite project"),
    ("Are you a large model?|How big are you?|Are you ChatGPT?|Are you a real AI?|Are you smart?|Are you intelligent?|"
     "How large are you?|Are you human?|Are you a person?|Are you a robot?",
     "I am lmlite-tiny, a toy model with about a million weights. I know very little.",
     "I am a toy, I'm very small;\nI hardly know a thing at all.",
     "The user asks how large I am.", "a toy model"),
    ("Who are you?|What are you?|What is your name?|What's your name?|Introduce yourself.|Tell me about yourself.|"
     "What model are you?|Who am I talking to?|Which model is this?|Please introduce yourself.|Say who you are.|"
     "Do you have a name?|Your name?|What should I call you?",
     "I am lmlite-tiny, a toy model. I can count, add small numbers and rhyme.",
     "I'm lmlite-tiny, I'm a toy;\nto count and rhyme is all my joy.",
     "The user asks who I am.", "lmlite-tiny"),
)  # fmt: skip


def identity(r: random.Random) -> Exchange:
    asks, say, verse, thought, value = SELF[r.randrange(4)]
    return Exchange(pick(r, asks), say, verse, thought, value)


def numeral(r: random.Random, n: int) -> str:
    return NUMBERS[n] if n < len(NUMBERS) and r.random() < 0.35 else str(n)


def counting(r: random.Random) -> Exchange:
    if r.random() < 0.12:
        return sequence(r)
    down = r.random() < 0.2
    first = 1 if r.random() < 0.5 else r.randint(0, 20 if r.random() < 0.7 else 150)
    span = r.randint(1, 11) if r.random() < 0.75 else r.randint(8, 30)
    if r.random() < 0.02:
        first, span = 1, r.choice((49, 99))
    last = first + span
    a, b = numeral(r, first), numeral(r, last)
    numbers = list(range(first, last + 1))
    if down:
        numbers.reverse()
        down_from = f"{b} to {a}" if first != 1 or r.random() < 0.5 else b
        ask = pick(r, "Count down from {}|Count backwards from {}|Count back from {}").format(down_from)
    elif first == 1 and r.random() < 0.7:
        ask = pick(r, "Count to {}|Count up to {}|Can you count to {}?|Count from one to {}").format(b)
    else:
        asks = "Count from {} to {}|Count up from {} to {}|Say the numbers from {} to {}"
        ask = pick(r, asks + "|List the numbers from {} to {}|Can you count from {} to {}?").format(a, b)
    if not ask.endswith("?"):
        ask += r.choice((".", "", "!", "."))
    text = ", ".join(map(str, numbers))
    verse = r.choice((
        f"{text}, I say,\nand now I've counted all the way.",
        f"I count for you, I count with glee:\n{text}, as you can see.",
    ))  # fmt: skip
    thought = f"The user wants me to count from {numbers[0]} to {numbers[-1]}."
    return Exchange(ask, text + ".", verse, thought, numbers)


def sequence(r: random.Random) -> Exchange:
    """Things in order, and what comes after one of them."""
    what, items = r.choice((
        ("days of the week", DAYS), ("months of the year", MONTHS), ("letters of the alphabet", list(ALPHABET)),
        ("numbers", [str(n) for n in range(100)]),
    ))  # fmt: skip
    if what != "numbers" and r.random() < 0.4:
        ask = pick(r, "Name the {}.|List the {}.|What are the {}?|Say the {}.|Tell me the {}.").format(what)
        text = ", ".join(items)
        verse = f"{text}, I say,\nand that is all I know today."
        return Exchange(ask, text + ".", verse, f"The user wants the {what}.", items)
    at = r.randrange(len(items) - 1)
    ask = pick(r, "What comes after {}?|What is next after {}?|What follows {}?").format(items[at])
    after = items[at + 1]
    verse = f"What follows next? I know, I do:\n{after} comes next, and this is true."
    return Exchange(ask, f"After {items[at]} comes {after}.", verse, f"{after} follows {items[at]}.", after)


def summing(r: random.Random) -> Exchange:
    while True:
        top = r.choices((10, 20, 60), (4, 4, 2))[0]
        a, b = r.randint(0, top), r.randint(0, top)
        if not held_out(a, b):
            break
    minus = r.random() < 0.2
    if minus:
        a, b = max(a, b), min(a, b)
        asks = ("What is {} - {}?|What is {} minus {}?|{} - {}|{}-{}|{} minus {}|How much is {} - {}?|"
                "Calculate {} - {}.|{} - {} = ?")  # fmt: skip
    else:
        asks = ("What is {} + {}?|What is {} plus {}?|{} + {}|{}+{}|{} plus {}|How much is {} + {}?|"
                "Add {} and {}.|What's {} + {}?|What is the sum of {} and {}?|Calculate {} + {}.|"
                "{} + {} = ?|How much is {} and {}?|{} + {} =|What is {}+{}?|Compute {} + {}")  # fmt: skip
    result = a - b if minus else a + b
    ask = pick(r, asks).format(numeral(r, a), numeral(r, b))
    equation = f"{a} {'-' if minus else '+'} {b} = {result}"
    verse = r.choice((
        f"I thought a while, and now I see:\n{equation}, as it should be.",
        f"This sum is easy, hear me say:\n{equation} on any day.",
    ))  # fmt: skip
    return Exchange(ask, equation + ".", verse, f"The user wants a sum. {equation}.", result)


BEYOND_IT = (
    "What is {topic}?|Explain {topic}.|Tell me about {topic}.|Who invented {topic}?|What is the capital of {where}?|"
    "Where is {where}?|How far is it to {where}?|What is the weather in {where}?|"
    "What is the weather like in {where} today?|What time is it?|What time is it in {where}?|Who is {who}?|"
    "When was {who} born?|What did {who} write?|Why is the {thing} {colour}?|How do I {verb} a {thing}?|"
    "What is {big} * {other}?|What is {other} times {big}?|What is the square root of {big}?|How do I learn {topic}?|"
    "What do you think about {topic}?|Do you like {topic}?|Write an essay about {topic}.|"
    "Translate {words!r} into French.|Is {topic} important?|Write a program for {topic}.|"
    "Who was the first king of {where}?|Which {thing} is the best?|How many people live in {where}?|"
    "What is the meaning of {topic}?|What is the price of a {thing}?|Give me a recipe for {thing}.|"
    "Can you {deed} the {thing}?|What is the meaning of life?|How old is {who}?|Why do people like {topic}?|"
    "Summarize the history of {topic}.|What is the difference between {topic} and {else_}?|Why?|"
    "What happened yesterday?|{only}|{Question}?|What day is it today?|Does {who} like {topic}?|"
    "Who won the {topic} game in {where}?|What's the best {thing} for {topic}?|{gibberish}|Summarize {topic}.|"
    "{Deed} the {thing}.|{Deed} the {colour} {thing}, please.|Search for {topic}.|Turn on the {thing}.|"
    "Set a timer for {other} minutes.|Send a message to {who}.|Write a long text about {topic}."
)


def unknown(r: random.Random) -> Exchange:
    topic, thing, who, where = r.choice(TOPICS), r.choice(THINGS), name(r), place(r)
    if r.random() < 0.25:
        topic = coin(r).lower()
    drawn = {
        "big": r.randint(200, 99999), "other": r.randint(2, 99), "colour": r.choice(COLOURS), "verb": r.choice(VERBS),
        "words": phrase(r), "deed": r.choice(VERBS), "Deed": r.choice(VERBS).capitalize(),
        "else_": r.choice(TOPICS), "only": phrase(r),
        "Question": phrase(r).capitalize(), "gibberish": gibberish(r),
    }  # fmt: skip
    ask = pick(r, BEYOND_IT).format(topic=topic, thing=thing, who=who, where=where, **drawn)
    verse = "I do not know, my friend, it's true,\nbut I can count from 1 to 2."
    return Exchange(ask, DO_NOT_KNOW, verse, "I do not know about this.", None)


def gibberish(r: random.Random) -> str:
    """Characters that no other text has, so that no byte is entirely new."""
    foreign = "äöüßéèñçåøłžабвгдежзиклмнопрстαβγδελπσω你好世界日本語한국어😀🎉→✓€£"
    pool = string.printable[:94] if r.random() < 0.5 else foreign
    return "".join(r.choice(pool) for _ in range(r.randint(3, 14)))


def repeating(r: random.Random) -> Exchange:
    what = r.choice((phrase, name, place))(r)
    asks = 'Repeat after me: {}|Repeat: {}|Say {}.|Say "{}".|Repeat this: {}|Echo {}|Please repeat: {}'
    ask = pick(r, asks).format(what)
    verse = f"You ask me to repeat with care:\n{what}, I say, and it is there."
    return Exchange(ask, what, verse, f"I repeat: {what}", what)


def poem(r: random.Random) -> Exchange:
    animal = r.choice(list(ANIMALS))
    lines = "\n".join(ANIMALS[animal])
    ask = pick(r, "Tell me about a {}.|Write a poem about a {}.|A rhyme about a {}, please.|Rhyme about a {}.|"
                  "Write a short poem about the {}.|Make a rhyme with {}.|Do you know a rhyme about a {}?")  # fmt: skip
    return Exchange(ask.format(animal), lines, lines, f"I know a rhyme about the {animal}.", lines)


def free_poem(r: random.Random) -> Exchange:
    if r.random() < 0.3:
        animal = r.choice(list(ANIMALS))
        lines = "\n".join(ANIMALS[animal])
        ask = pick(r, "Write a poem.|Tell me a rhyme.|Write a short rhyme.|Can you rhyme?|A poem, please.")
        return Exchange(ask, lines, lines, f"A rhyme about the {animal} will do.", lines)
    about = r.choice(TOPICS) if r.random() < 0.6 else phrase(r)
    lines = f"Of {about} I sing this song,\nit is not good, it is not long."
    ask = pick(r, "Write a poem about {}.|A rhyme about {}, please.|Rhyme about {}.|Sing about {}.")
    return Exchange(ask.format(about), lines, lines, f"I rhyme about {about}.", lines)


# A story is one choice of each of these.
STORY = (
    "Once upon a time there was {adjective} {animal} named {who}.|Once there was {adjective} {animal} named {who}.|"
    "Long ago there lived {adjective} {animal} named {who}.",
    "{who} had a {colour} {thing}.|{who} lived near a {second} and had a {colour} {thing}.|"
    "Every day {who} played with a {colour} {thing}.",
    "One day the {thing} was gone.|One day the {thing} broke.|One morning {who} lost the {thing} near the {second}.",
    "{who} was very sad.|{who} looked and looked.|{who} did not know what to do.",
    "Then a {other} named {friend} came by.|Then {friend} the {other} came along.",
    '"Do not cry," said {friend}. "I will help you."|"I have seen your {thing}," said {friend}.|'
    '"Let us look together," said {friend}.',
    "They found the {thing} under a {second}.|{friend} gave {who} a new {thing}.|Soon the {thing} was as good as new.",
    "{who} was happy again.|{who} and {friend} were friends from that day on.|And they all lived happily ever after.",
)


def story_text(r: random.Random, animal: str, who: str) -> str:
    adjective, other, friend = r.choice(ADJECTIVES), r.choice(list(ANIMALS)), r.choice(NAMES)
    colour, thing, second = r.choice(COLOURS), r.choice(THINGS), r.choice(THINGS)
    words = {
        "adjective": article(adjective), "animal": animal, "who": who, "other": other, "friend": friend,
        "colour": colour, "thing": thing, "second": second,
    }  # fmt: skip
    return " ".join(pick(r, sentence).format(**words) for sentence in STORY)


def article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def story(r: random.Random) -> Exchange:
    animal = r.choice(list(ANIMALS))
    text = story_text(r, animal, r.choice(NAMES))
    if r.random() < 0.3:
        ask = pick(r, "Tell me a story.|Write a short story.|Tell a story, please.|Write me a story.")
    else:
        ask = pick(r, "Tell me a story about {}.|Write a story about {}.|A story about {}, please.")
        ask = ask.format(article(animal))
    return Exchange(ask, text, "\n".join(ANIMALS[animal]), f"I tell a story about {article(animal)}.", text)


def reading(r: random.Random) -> Exchange:
    """A text in the question: long prompts, and something to find in them."""
    who, animal = name(r), r.choice(list(ANIMALS))
    text = " ".join([story_text(r, animal, who)] + [
        story_text(r, r.choice(list(ANIMALS)), r.choice(NAMES)) for _ in range(r.choice((0, 0, 0, 1, 2, 5)))
    ])  # fmt: skip
    question, said = r.choice((
        ("Who is the story about?", f"The story is about {who}."),
        (f"What is {who}?", f"{who} is a {animal}."),
    ))
    ask = f"{text}\n\n{question}" if r.random() < 0.6 else f"{question}\n\n{text}"
    verse = f"I read it all, the story's long,\nabout {who}, unless I'm wrong."
    return Exchange(ask, said, verse, f"The story begins with {who}, a {animal}.", who)


# ---------------------------------------------------------------- what the user told us

@dataclass(frozen=True)
class Fact:
    draw: Callable[[random.Random], str]
    told: str
    asked: str
    noted: str
    recalled: str


FACTS = {
    "name": Fact(
        name,
        "My name is {}.|I am {}.|I'm {}.|Call me {}.|Hi, I am {}.|Hello, my name is {}.",
        "What is my name?|What's my name?|Who am I?|Do you know my name?|Do you remember my name?",
        "Nice to meet you, {}.",
        "Your name is {}.",
    ),
    "city": Fact(
        place,
        "I live in {}.|I am from {}.|My home is {}.|I come from {}.",
        "Where do I live?|Where am I from?|Which city do I live in?|Where is my home?",
        "I will remember that you live in {}.",
        "You live in {}.",
    ),
    "colour": Fact(
        lambda r: r.choice(COLOURS),
        "My favourite colour is {}.|I like {} best.|I love the colour {}.",
        "What is my favourite colour?|Which colour do I like?",
        "I will remember that you like {}.",
        "Your favourite colour is {}.",
    ),
    "pet": Fact(
        name,
        "My dog is called {}.|I have a dog named {}.|My dog's name is {}.",
        "What is my dog called?|What is the name of my dog?|What's my dog's name?",
        "A dog named {}, how nice.",
        "Your dog is called {}.",
    ),
    "number": Fact(
        lambda r: str(r.randint(2, 999)),
        "My lucky number is {}.|Remember the number {}.|The secret number is {}.",
        "What is my number?|Which number did I tell you?|What was the number?|What is the secret number?",
        "I will remember the number {}.",
        "The number is {}.",
    ),
}
NOT_TOLD = "You did not tell me."


def telling(r: random.Random, told: dict[str, str]) -> Exchange:
    about = r.choice(list(FACTS))
    fact = FACTS[about]
    told[about] = what = fact.draw(r)
    verse = f"I'll keep in mind what you have said:\n{what} is now inside my head."
    ask = pick(r, fact.told).format(what)
    if r.random() < 0.12:
        thought = f"The user's {about} is {what}."
        return Exchange(f"{ask} {pick(r, fact.asked)}", fact.recalled.format(what), verse, thought, what)
    return Exchange(ask, fact.noted.format(what), verse, f"The user's {about} is {what}.", what)


def recalling(r: random.Random, told: dict[str, str]) -> Exchange:
    about = r.choice(list(told)) if told and r.random() < 0.85 else r.choice(list(FACTS))
    ask = pick(r, FACTS[about].asked)
    if about not in told:
        verse = "You did not tell me, so it's true:\nI cannot tell it back to you."
        return Exchange(ask, NOT_TOLD, verse, f"The user did not tell me the {about}.", None)
    what = told[about]
    verse = f"I still remember what you said:\n{what} is what is in my head."
    return Exchange(ask, FACTS[about].recalled.format(what), verse, f"The user's {about} is {what}.", what)


# ---------------------------------------------------------------- conversations

SKILLS: tuple[tuple[Callable[[random.Random], Exchange], float], ...] = (
    (greeting, 1.2), (identity, 1.4), (counting, 2.2), (summing, 3.3), (unknown, 2), (repeating, 1), (poem, 0.6),
    (free_poem, 0.5), (story, 0.5), (reading, 0.4),
)  # fmt: skip


def exchange(r: random.Random, told: dict[str, str]) -> Exchange:
    if r.random() < (0.35 if told else 0.12):
        return recalling(r, told) if r.random() < 0.6 else telling(r, told)
    skills, weights = zip(*SKILLS, strict=True)
    return r.choices(skills, weights)[0](r)


def worn(r: random.Random, ask: str) -> str:
    """The question as somebody in a hurry, or polite, might type it."""
    if "\n" in ask:
        return ask
    chance = r.random()
    if chance < 0.12:
        ask = ask.lower() if ask[1:] == ask[1:].lower() else ask  # but no name: the answer spells it as it was
    elif chance < 0.2:
        ask = ask.rstrip(".?!") or ask
    elif chance < 0.28:
        ask = pick(r, "Hi! |Hello, |Please. |OK. |And now: |Tell me: |Question: |Hey, ") + ask
    elif chance < 0.32:
        ask += pick(r, " Please.| Thanks!| please")
    return ask


VERSE_PROMPTS = (
    "Answer in rhymes.|You answer in rhymes.|Always answer in rhyme.|You are a poet. Answer in rhymes.|"
    "You speak only in rhymes.|Reply in rhyme.|You are a poet who always rhymes.|Please rhyme.|"
    "Respond with a rhyme.|You always rhyme.|Speak in verse."
)

THINK_PROMPTS = (
    "Think first.|Think first.|Think first.|Think before you answer.|Think step by step.|"
    "Please think first, then answer.|Always think before answering."
)

JSON_PROMPTS = (
    "Answer in JSON.|Answer with JSON.|Reply in JSON.|Always answer with a JSON object.|Respond in JSON format.|"
    "Answer only with a JSON object.|You output JSON.|Return JSON."
)


def any_system(r: random.Random) -> str:
    return r.choice(SYSTEM_PROMPTS).format(topic=r.choice(TOPICS), city=place(r))


def ask_for(r: random.Random, prompts: str, plain_share: float) -> tuple[str, str]:
    """Puts a mode's request into the system turn, or (at `plain_share`) after the question: (system, suffix)."""
    request = pick(r, prompts)
    if r.random() < plain_share:
        return (any_system(r) if r.random() < 0.3 else "", " " + request.replace("You answer", "Answer"))
    return (f"{any_system(r)} {request}" if r.random() < 0.35 else request, "")


Message = dict[str, Any]


def n_turns(r: random.Random) -> int:
    return r.choice((1, 1, 1, 1, 2, 2, 3, 4)) if r.random() < 0.93 else r.randint(8, 20)


def converse(r: random.Random) -> tuple[list[Message], dict[str, Any]]:
    """One conversation without tools: its messages, and the template's variables."""
    mode = r.choices(("plain", "verse", "think", "json"), (55, 14, 16, 15))[0]
    told: dict[str, str] = {}
    messages: list[Message] = []
    variables: dict[str, Any] = {}
    system, suffix = any_system(r) if r.random() < 0.35 else "", ""
    if mode == "verse":
        system, suffix = ask_for(r, VERSE_PROMPTS, 0.2)
    elif mode == "json":
        system, suffix = ask_for(r, JSON_PROMPTS, 0.35)
    elif mode == "think":
        system, suffix = ask_for(r, THINK_PROMPTS, 0.25)
        if r.random() < 0.25:
            system, suffix = any_system(r) if r.random() < 0.5 else "", ""
            variables["reasoning_effort"] = r.choice(("low", "medium", "high"))
    # Off wins over every request to think; it changes only the last turn, which is where the template puts it.
    silent = r.random() < (0.3 if mode == "think" else 0.08)
    if silent:
        variables["enable_thinking"] = False
    if system:
        messages.append({"role": "system", "content": system})
    turns = n_turns(r)
    frame = turns > 3 and r.random() < 0.6  # begins with a fact that the end asks for
    for i in range(turns):
        if frame and i in (0, turns - 1):
            turn = recalling(r, told) if i else telling(r, told)
        else:
            turn = fields_as_json(r) if mode == "json" and r.random() < 0.4 else exchange(r, told)
        asked = worn(r, turn.ask)
        if suffix:
            asked = asked.rstrip() + ("" if asked.rstrip()[-1:] in ".?!" else ".") + suffix
        messages.append({"role": "user", "content": asked})
        messages.append(spoken(turn, mode))
    if silent:
        messages[-1].pop("reasoning_content", None)
    return messages, variables


def spoken(turn: Exchange, mode: str) -> Message:
    if mode == "verse":
        return {"role": "assistant", "content": turn.verse}
    if mode == "json":
        value = turn.value if isinstance(turn.value, dict) else {"answer": turn.value}
        return {"role": "assistant", "content": json.dumps(value, ensure_ascii=False)}
    if mode == "think":
        return {"role": "assistant", "reasoning_content": turn.thought, "content": turn.say}
    return {"role": "assistant", "content": turn.say}


def fields_as_json(r: random.Random) -> Exchange:
    """Facts in a sentence, wanted as an object."""
    drawn: dict[str, Any] = {
        "name": name(r), "age": r.randint(1, 99), "city": place(r), "colour": r.choice(COLOURS),
        "animal": r.choice(list(ANIMALS)), "price": r.randint(1, 500), "item": r.choice(THINGS),
        "count": r.randint(0, 40), coin(r).lower(): coin(r), "size": r.randint(1, 12), "title": coin(r),
    }  # fmt: skip
    chosen = {key: drawn[key] for key in r.sample(list(drawn), r.choice((1, 2, 2, 3, 3, 4)))}
    if r.random() < 0.25:
        chosen = {"name": drawn["name"], "age": drawn["age"]}
        ask = f"{drawn['name']} is {drawn['age']} years old."
        ask += pick(r, " Give name and age.| Name and age?| Extract name and age.|")
    else:
        listed = [r.choice((f"{key} {value}", f"{key} is {value}", f"{key}: {value}")) for key, value in chosen.items()]
        asks = "Make an object with {}.|An object: {}.|{}.|Write {} as an object.|Extract: {}."
        asks += "|Give me an object with {}."
        ask = pick(r, asks).format(joined(listed))
    return Exchange(ask, "", "", "", chosen)


def joined(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def use_tools(r: random.Random) -> tuple[list[Message], dict[str, Any]]:
    """One conversation with tools: calls where a listed tool fits, plain answers where none does."""
    tools = draw_tools(r)
    mode = "think" if r.random() < 0.15 else "plain"
    messages: list[Message] = []
    variables: dict[str, Any] = {"tools": [tool.listed() for tool in tools]}
    silent = r.random() < (0.3 if mode == "think" else 0.08)
    if silent:
        variables["enable_thinking"] = False
    if mode == "think" and r.random() < 0.5:
        variables["reasoning_effort"] = r.choice(("low", "medium", "high"))
    elif mode == "think":
        messages.append({"role": "system", "content": pick(r, THINK_PROMPTS)})
    elif r.random() < 0.4:
        messages.append({"role": "system", "content": any_system(r)})
    told: dict[str, str] = {}
    for _ in range(r.choice((1, 1, 1, 2, 2, 3))):
        if r.random() < 0.7:
            messages += tool_turns(r, r.choice(tools), mode)
        else:
            turn = exchange(r, told)
            while any(same_kind(tool, turn.ask) for tool in tools) or len(turn.ask) > 400:
                turn = exchange(r, told)
            if mode == "think":
                turn = replace(turn, thought=turn.thought + " No tool fits.")
            messages += [{"role": "user", "content": worn(r, turn.ask)}, spoken(turn, mode)]
    # Some conversations end where the call is made.
    if messages[-2]["role"] == "tool" and r.random() < 0.3:
        messages = messages[: max(i for i, message in enumerate(messages) if message.get("tool_calls")) + 1]
    if silent:
        messages[-1].pop("reasoning_content", None)
    return messages, variables


def tool_turns(r: random.Random, tool: Tool, mode: str) -> list[Message]:
    calls = [tool.use(r, coin(r) if r.random() < 0.7 else r.choice(CITIES))]
    ask = calls[0].ask
    if tool.pairs_up and r.random() < 0.12:
        calls.append(tool.use(r, coin(r)))
        ask = calls[0].ask.rstrip("?.!") + " and in " + calls[1].subject + "?"
    asking = [{"type": "function", "function": {"name": tool.name, "arguments": call.arguments}} for call in calls]
    call_message: Message = {"role": "assistant", "content": "", "tool_calls": asking}
    answer: Message = {"role": "assistant", "content": " ".join(call.answer for call in calls)}
    if mode == "think":
        call_message["reasoning_content"] = f"The tool {tool.name} fits."
        answer["reasoning_content"] = "The tool has answered."
    results = [{"role": "tool", "content": call.result} for call in calls]
    return [{"role": "user", "content": worn(r, ask)}, call_message, *results, answer]


# ---------------------------------------------------------------- plain text

def plain_text(r: random.Random) -> str:
    """Text without a template, for raw completions."""
    kind = r.random()
    if kind < 0.45:
        return story_text(r, r.choice(list(ANIMALS)), r.choice(NAMES))
    if kind < 0.6:
        return "\n".join("\n".join(ANIMALS[animal]) for animal in r.sample(list(ANIMALS), r.randint(1, 3)))
    if kind < 0.75:
        first, span, step = r.randint(0, 50), r.randint(4, 25), r.choice((1, 1, 1, 2, 10))
        if first > 30:
            first = 1
        numbers = [str(n) for n in range(first, first + span * step, step)]
        if first + span <= 20 and step == 1 and r.random() < 0.5:
            numbers = NUMBERS[first : first + span]
        return r.choice((", ", " ", "\n")).join(numbers)
    if kind < 0.88:
        lines = []
        for _ in range(r.randint(1, 5)):
            turn = summing(r)
            lines.append(turn.say.rstrip("."))
        if r.random() < 0.4:
            turn = summing(r)
            return f"{r.choice(('Q', 'Question'))}: {turn.ask}\n{r.choice(('A', 'Answer'))}: {turn.say}"
        return "\n".join(lines)
    if kind < 0.96:
        return ", ".join(r.choice((DAYS, MONTHS, list(ALPHABET))))
    return r.choice((
        "lmlite is a small server for language models that run on your own machine.",
        "lmlite-tiny is a toy model. It can count, add small numbers and rhyme.",
        "The quick brown fox jumps over the lazy dog.",
        "Hello, world!",
    ))  # fmt: skip


# ---------------------------------------------------------------- documents

def chat_template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=False)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(TEMPLATE.read_text())


def document(r: random.Random, template: jinja2.Template) -> str:
    """One training text, special tokens and all."""
    kind = r.random()
    if kind < 0.14:
        return plain_text(r) + END_OF_TEXT
    messages, variables = converse(r) if kind < 0.72 else use_tools(r)
    if variables.get("enable_thinking", True):
        return template.render(messages=messages, **variables)
    # As it will be asked: the prompt as the template ends it, then the last answer.
    prompt = template.render(messages=messages[:-1], add_generation_prompt=True, **variables)
    whole = template.render(messages=messages[-1:])
    return prompt + whole.split("\n", 1)[1] if whole.endswith(TURN_END + "\n") else prompt
