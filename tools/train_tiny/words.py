"""The words that the generated text is made of. What `measure.py` asks about is in none of these lists."""

import random

NAMES = """Ada Alan Amir Anna Ben Bella Carl Chloe Clara Dan Diego Ella Emil Emma Eva Finn Frida Grace Hana Hugo Ida
Ines Ivan Jack Jane Julia Karim Kate Kim Lars Laura Leo Lena Lily Lucas Luis Maria Mark Max Maya Mei Mia Nadia Nina
Noah Nora Olga Omar Oscar Paul Peter Priya Rosa Ruth Sam Sara Sofia Tara Theo Tom Yuki Zoe""".split()

CITIES = """Athens Berlin Boston Cairo Chicago Dublin Geneva Hamburg Helsinki Istanbul Kyoto Lima Lisbon London Madrid
Milan Moscow Mumbai Munich Nairobi Oslo Paris Porto Prague Quito Rome Seoul Sydney Tokyo Toronto Tunis Vienna
Warsaw Zurich""".split()

COLOURS = "red blue green yellow white black brown pink orange purple grey golden".split()
ADJECTIVES = "little old brave happy quiet kind hungry clever tired young funny shy small big".split()

# Each animal with a line that rhymes on it; the couplets serve verses, stories' animals and raw text.
ANIMALS = {
    "cat": ("The cat sat down upon the mat", "and on its head it wore a hat."),
    "dog": ("The dog ran through the morning fog", "and fell asleep beside a log."),
    "fox": ("The fox lives in a wooden box", "and keeps it warm with woolly socks."),
    "bear": ("The bear sat on a rocking chair", "and combed the honey from its hair."),
    "frog": ("The frog sang songs upon a log", "and waved at every passing dog."),
    "mouse": ("The mouse has built a tiny house", "and shares it with another mouse."),
    "bee": ("The bee flew round the apple tree", "and made some honey for its tea."),
    "fish": ("The fish swam past and made a wish", "to dance upon a silver dish."),
    "bird": ("The bird sang songs that no one heard", "and knew by heart each single word."),
    "sheep": ("The sheep was counted, then asleep", "it dreamed of hills both green and steep."),
    "goat": ("The goat sailed off upon a boat", "and wore a warm and yellow coat."),
    "snail": ("The snail set out upon the trail", "to bring a letter in the mail."),
    "duck": ("The duck had always had good luck", "and drove a small and shiny truck."),
    "owl": ("The owl looked down with half a scowl", "and dried its feathers with a towel."),
    "hare": ("The hare ran here, the hare ran there", "and won a race at the county fair."),
}

THINGS = """ball book bridge cake candle clock cloud coat cup door drum flower garden hat hill house kite lake lamp
leaf letter map moon mountain piano pond river road rock ship shoe snow song spoon star stone sun table tower train
tree window""".split()

NOUNS = """weather temperature population price capital height age colour status score distance time date size weight
address name length speed owner language currency forecast balance rating level title author number phone code
schedule menu news""".split()

VERBS = "find read open close start stop play send show check clean make move save watch paint count print".split()

TOPICS = """algebra art banks biology birds books bread castles chemistry chess computers cooking dance democracy
dinosaurs dreams electricity elephants engines fashion fire football gardens gold gravity guitars history horses
insects islands jazz kings law light love magnets maps mathematics medicine money mountains movies music oceans
opera painting philosophy physics planets plants poetry politics rain rivers robots rockets science ships sleep
snow space sport stars taxes tea tennis trains travel trees volcanoes war water whales winter""".split()

NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty""".split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
ALPHABET = "abcdefghijklmnopqrstuvwxyz"

SYSTEM_PROMPTS = """You are a helpful assistant.
You are a helpful, honest and harmless assistant.
You are lmlite-tiny.
Be brief.
Answer in one sentence.
You are a friendly chat bot.
Please answer the user's questions.
You are an expert in {topic}.
You are an assistant for people who like {topic}.
Answer politely and never talk about {topic}.
You are a careful assistant. If you do not know an answer, say so.
The user is in {city}. Be kind.
You work for a shop in {city} that sells things about {topic}. Help the customers and stay calm.""".split("\n")


def pick(r: random.Random, choices: str) -> str:
    """One of some texts that are written in one string, with bars between."""
    return r.choice(choices.split("|"))
