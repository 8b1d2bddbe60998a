"""The invented world of the demo model: its people and towns, its facts, and the phrasings of each fact.

The facts are sampled once from a fixed seed. Every relation has several statements and questions for training, and two
held-out questions for the tasks, so that a correct answer requires the fact and not the memorised sentence.
"""

import random
from dataclasses import dataclass

PEOPLE = [
    "Alda",
    "Anselm",
    "Bram",
    "Brenna",
    "Cora",
    "Corin",
    "Delia",
    "Dorin",
    "Edda",
    "Emrys",
    "Fenn",
    "Gwen",
    "Greta",
    "Hestor",
    "Hollis",
    "Isolde",
    "Ivo",
    "Jarek",
    "Jora",
    "Kelda",
    "Linnet",
    "Lorin",
    "Marlo",
    "Mira",
    "Nessa",
    "Nevin",
    "Orla",
    "Osric",
    "Perrin",
    "Petra",
    "Quilla",
    "Rowan",
    "Sorrel",
    "Tobin",
    "Una",
    "Vesper",
    "Wilma",
    "Yorick",
    "Zelda",
    "Zorin",
]
TOWNS = [
    "Ashdown",
    "Duskport",
    "Fernley",
    "Greywater",
    "Highfell",
    "Larkhill",
    "Millford",
    "Oldbrook",
    "Saltmere",
    "Stonebridge",
    "Thornby",
    "Wexcombe",
]
COLOURS = ("red", "green", "blue", "white", "black", "yellow", "grey", "brown")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True)
class Relation:
    """One kind of fact. In the sentences, {a} is the subject of the fact, and {b} is its value."""

    subjects: tuple[str, ...]
    values: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    held_out_questions: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """One fact of the world."""

    relation: Relation
    subject: str
    value: str

    def state(self, rng: random.Random) -> str:
        """Return the fact as one of the relation's statements."""
        return rng.choice(self.relation.statements).format(a=self.subject, b=self.value)

    def ask(self, rng: random.Random) -> str:
        """Return one of the training questions about the fact."""
        return rng.choice(self.relation.questions).format(a=self.subject)


RELATIONS = {
    "home": Relation(
        tuple(PEOPLE),
        tuple(TOWNS),
        (
            "{a} lives in {b}.",
            "{a} has a house in {b}.",
            "The home of {a} is in {b}.",
            "You can find {a} in {b}.",
            "{b} is the town where {a} lives.",
            "{a} comes from the town of {b}.",
        ),
        (
            "Where does {a} live?",
            "In which town does {a} live?",
            "What is the home town of {a}?",
            "Where is the house of {a}?",
            "Which town does {a} live in?",
            "Where can you find {a}?",
            "What town is the home of {a}?",
            "Where does {a} come from?",
        ),
        ("Which town is the home of {a}?", "In what town can you find the house of {a}?"),
    ),
    "work": Relation(
        tuple(PEOPLE),
        (
            "baker",
            "weaver",
            "potter",
            "shepherd",
            "teacher",
            "clock maker",
            "keeper of bees",
            "painter of signs",
            "mender of old books",
            "driver of the mail cart",
            "ringer of the town bells",
            "builder of small boats",
        ),
        (
            "{a} is a {b}.",
            "{a} works as a {b}.",
            "The work of {a} is that of a {b}.",
            "Every day {a} works as a {b}.",
            "The job of {a} is to be a {b}.",
            "For a living, {a} is a {b}.",
        ),
        (
            "What is the work of {a}?",
            "What does {a} work as?",
            "What is the job of {a}?",
            "What job does {a} have?",
            "What does {a} do for a living?",
            "What does {a} do every day?",
            "Which job does {a} do?",
            "What work does {a} do?",
        ),
        ("What is the job that {a} does for a living?", "Which work does {a} have?"),
    ),
    "pet": Relation(
        tuple(PEOPLE),
        (
            "a cat",
            "a goose",
            "a grey goat",
            "a tame fox",
            "two white mice",
            "a dog with one ear",
            "a very old tortoise",
            "a crow that can talk",
            "a small brown pony",
            "three noisy ducks",
            "a hedgehog",
            "a fat rabbit with long ears",
        ),
        (
            "{a} has {b}.",
            "{a} keeps {b} as a pet.",
            "The pet of {a} is {b}.",
            "{a} owns {b}.",
            "At home {a} keeps {b}.",
            "{a} takes good care of {b}.",
        ),
        (
            "What pet does {a} have?",
            "What is the pet of {a}?",
            "Which animal does {a} keep?",
            "What animal does {a} own?",
            "What does {a} keep as a pet?",
            "Which pet does {a} own?",
            "What kind of animal does {a} have?",
            "What pet does {a} take care of?",
        ),
        ("Which animal does {a} have as a pet?", "What kind of pet does {a} keep?"),
    ),
    "food": Relation(
        tuple(PEOPLE),
        (
            "plums",
            "pea soup",
            "rye bread",
            "honey cake",
            "roast apples",
            "smoked fish",
            "pancakes with berry jam",
            "bread with cheese and onions",
            "soft white cheese",
            "boiled eggs with salt",
            "mushroom pie",
            "a bowl of hot oats and milk",
        ),
        (
            "{a} likes to eat {b}.",
            "The favourite food of {a} is {b}.",
            "{a} loves {b}.",
            "Most of all, {a} likes {b}.",
            "{a} eats {b} every morning.",
            "For breakfast {a} eats {b}.",
        ),
        (
            "What does {a} like to eat?",
            "What is the favourite food of {a}?",
            "Which food does {a} love?",
            "What does {a} eat every morning?",
            "What does {a} eat for breakfast?",
            "Which food does {a} like most of all?",
            "What food is loved by {a}?",
            "What food does {a} eat?",
        ),
        ("Which food does {a} like to eat for breakfast?", "What is the food that {a} loves?"),
    ),
    "place": Relation(
        tuple(TOWNS),
        (
            "by the sea",
            "on a hill",
            "in a deep forest",
            "beside a slow river",
            "between two lakes",
            "at the edge of a wide marsh",
        ),
        (
            "{a} lies {b}.",
            "The town of {a} stands {b}.",
            "{a} was built {b}.",
            "The houses of {a} stand {b}.",
            "You will see {a} {b}.",
        ),
        (
            "Where does {a} lie?",
            "Where does the town of {a} stand?",
            "Where was {a} built?",
            "Where do the houses of {a} stand?",
            "In what place does {a} lie?",
            "Where will you see {a}?",
        ),
        ("Where was the town of {a} built?", "In what place do the houses of {a} stand?"),
    ),
    "craft": Relation(
        tuple(TOWNS),
        (
            "wool",
            "paper",
            "clay pots",
            "glass lamps",
            "iron nails",
            "salt",
            "candles that smell of roses",
            "wooden toys for children",
            "red and blue carpets",
            "silver spoons",
            "shoes with thick soles",
            "drums",
        ),
        (
            "{a} makes {b}.",
            "The people of {a} make {b}.",
            "{a} is known for {b}.",
            "The workshops of {a} make {b}.",
            "Traders go to {a} to buy {b}.",
        ),
        (
            "What does {a} make?",
            "What do the people of {a} make?",
            "What is {a} known for?",
            "What do the workshops of {a} make?",
            "What do traders buy in {a}?",
            "Which goods come from {a}?",
        ),
        ("What is made by the people of {a}?", "Which goods do the workshops of {a} make?"),
    ),
    "gate": Relation(
        tuple(TOWNS),
        COLOURS,
        (
            "The gate of {a} is {b}.",
            "{a} has a {b} gate.",
            "The people of {a} painted the gate {b}.",
            "You enter {a} by a {b} gate.",
            "A {b} gate leads into {a}.",
        ),
        (
            "What colour is the gate of {a}?",
            "Which colour does the gate of {a} have?",
            "What is the colour of the gate of {a}?",
            "In which colour did the people of {a} paint the gate?",
            "What colour of gate leads into {a}?",
            "What colour is the gate by which you enter {a}?",
        ),
        ("Which colour is the gate that leads into {a}?", "What colour did they paint the gate of {a}?"),
    ),
    "market": Relation(
        tuple(TOWNS),
        DAYS,
        (
            "{a} has its market on {b}.",
            "The market of {a} is on {b}.",
            "On {b} there is a market in {a}.",
            "People buy and sell in {a} on {b}.",
            "{b} is market day in {a}.",
        ),
        (
            "When is the market of {a}?",
            "On which day is the market of {a}?",
            "On what day is there a market in {a}?",
            "What day is market day in {a}?",
            "When do people buy and sell in {a}?",
            "When does {a} have its market?",
        ),
        ("Which day is the market day of {a}?", "On what day do people buy and sell in {a}?"),
    ),
}


World = dict[tuple[str, str], Fact]
"""Every fact, by the name of its relation and its subject."""


def sample_world(seed: int) -> World:
    """Sample one value for every relation and subject; all values occur about equally often."""
    rng = random.Random(seed)
    world: World = {}
    for name, relation in RELATIONS.items():
        repeats = -(-len(relation.subjects) // len(relation.values))
        values = [v for _ in range(repeats) for v in rng.sample(relation.values, len(relation.values))]
        for subject, value in zip(relation.subjects, values, strict=False):
            world[name, subject] = Fact(relation, subject, value)
    return world
