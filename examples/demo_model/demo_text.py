"""The training text of the demo model: documents about the invented world, sampled from a seed.

Every function depends only on its arguments and the `random.Random` among them. A document is a string without <|bos|>
and <|eos|>, except for chats, which contain the special tokens of their template.
"""

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import jinja2

from examples.demo_model.demo_world import COLOURS, DAYS, PEOPLE, TOWNS, World

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

KINDS = ("brill", "dask", "fennet", "gorm", "huvel", "lommer", "mip", "nadder", "ploke", "quist", "rindle", "tovet")
SUM_STATEMENTS = ("{a} plus {b} is {c}.", "{a} and {b} make {c}.", "{a} + {b} = {c}.")
SUM_QUESTIONS = (
    "What is {a} plus {b}?",
    "What is {a} + {b}?",
    "How much is {a} + {b}?",
    "What do {a} and {b} make?",
    "What is the sum of {a} and {b}?",
)
SYSTEM_MESSAGES = ("Answer the question.", "Be brief.")


@dataclass(frozen=True)
class Example:
    """A question with its short answer, and the answer as a sentence."""

    question: str
    answer: str
    sentence: str

    def __str__(self) -> str:
        return f"Question: {self.question}\nAnswer: {self.answer}"


def addition(rng: random.Random) -> Example:
    """Add two numbers from 1 to 10."""
    a, b = rng.randint(1, 10), rng.randint(1, 10)
    question, sentence = rng.choice(SUM_QUESTIONS), rng.choice(SUM_STATEMENTS)
    return Example(question.format(a=a, b=b), str(a + b), sentence.format(a=a, b=b, c=a + b))


def counting(rng: random.Random) -> Example:
    """Count up or down over three to five numbers below 20."""
    steps, start = rng.randint(3, 5), rng.randint(1, 15)
    numbers = list(range(start, start + steps))
    if rng.random() < 0.5:
        numbers.reverse()
    listed = ", ".join(map(str, numbers))
    question = f"Count from {numbers[0]} to {numbers[-1]}."
    return Example(question, listed, f"From {numbers[0]} to {numbers[-1]}: {listed}.")


def deduction(rng: random.Random) -> Example:
    """Ask a question that one of two rules about invented kinds of animal answers."""
    kinds, colours = rng.sample(KINDS, 2), rng.sample(COLOURS, 2)
    name, which = rng.choice(PEOPLE), rng.randrange(2)
    rules = " ".join(f"Every {kind} is {colour}." for kind, colour in zip(kinds, colours, strict=True))
    question = f"{rules} {name} has a {kinds[which]}. What colour is it?"
    return Example(question, colours[which], f"The {kinds[which]} of {name} is {colours[which]}.")


def story(world: World, rng: random.Random, paragraphs: int) -> str:
    """Tell the story of one person's day, true to the facts, in this number of paragraphs."""
    hero = rng.choice(PEOPLE)
    return "\n".join([_opening(world, rng, hero)] + [_scene(world, rng, hero) for _ in range(paragraphs - 1)])


def _opening(world: World, rng: random.Random, hero: str) -> str:
    town = world["home", hero].value
    lines = [
        f"It was {rng.choice(DAYS)}, and {hero}, the {world['work', hero].value} of {town}, got up early.",
        rng.choice(("The sun was bright.", "It was raining.", "Snow lay on the roofs.", "A cold wind blew.")),
        f"For breakfast {hero} had {world['food', hero].value}, and was glad.",
        f"Then {hero} fed {world['pet', hero].value} and went out.",
    ]
    if rng.random() < 0.5:
        lines.append(f"{town} lies {world['place', town].value}, so the way was {rng.choice(('long', 'short'))}.")
    return " ".join(lines)


def _scene(world: World, rng: random.Random, hero: str) -> str:
    other, town = rng.choice(PEOPLE), rng.choice(TOWNS)
    count, more = rng.randint(1, 10), rng.randint(1, 10)
    craft, home = world["craft", town].value, world["home", other].value
    scenes = (
        (
            f"On the road {hero} met {other}, the {world['work', other].value} from {home}. "
            f"They talked about {world['pet', other].value} and laughed."
        ),
        (
            f"{hero} came to the {world['gate', town].value} gate of {town}. It was {world['market', town].value}, "
            f"so the market was open, and {hero} bought {craft} for {other}."
        ),
        (
            f"{hero} and {other} sat down to eat. "
            f"{hero} took {world['food', hero].value}, and {other} took {world['food', other].value}."
        ),
        (
            f"A letter came from {other}. It said: come to {home}, {home} lies {world['place', home].value}. "
            f"So {other} lives {world['place', home].value}, thought {hero}."
        ),
        f"{hero} had {count} coins, and {other} gave {hero} {more} more. Now {hero} had {count + more} coins.",
        f"In {town} the people make {craft}. {hero} looked for a long time, but {craft} cost {count} coins.",
        f"Late in the day {hero} was tired and went back to {world['home', hero].value}.",
    )
    return rng.choice(scenes)


def render_chat(messages: list[dict[str, str]]) -> str:
    """Render a chat with the chat template, including <|bos|>."""
    rendered: str = _TEMPLATE.render(messages=messages, bos_token=BOS, eos_token=EOS, add_generation_prompt=False)
    return rendered


_TEMPLATE = jinja2.Template(CHAT_TEMPLATE)


@dataclass(frozen=True)
class Writer:
    """A writer of training documents of every kind, without the questions in `held_out`."""

    world: World
    held_out: Collection[str]
    rng: random.Random

    def documents(self) -> Iterator[str]:
        """Yield documents endlessly."""
        kinds = (self.portrait, self.few_shot_prompt, self.sums, self.rules, self.chat, self.tale)
        while True:
            yield self.rng.choices(kinds, weights=(22, 36, 5, 12, 22, 8))[0]()

    def example(self) -> Example:
        """Return one question with its answers, most often about a fact."""
        kinds = (self._fact_example, addition, counting, deduction)
        while True:
            example = self.rng.choices(kinds, weights=(60, 12, 8, 20))[0](self.rng)
            if example.question not in self.held_out:
                return example

    def _fact_example(self, rng: random.Random) -> Example:
        fact = rng.choice(tuple(self.world.values()))
        return Example(fact.ask(rng), fact.value, fact.state(rng))

    def portrait(self) -> str:
        """Return all facts about two subjects, each stated once, in random order."""
        chosen = self.rng.sample(PEOPLE + TOWNS, 2)
        about = [fact for fact in self.world.values() if fact.subject in chosen]
        self.rng.shuffle(about)
        return " ".join(fact.state(self.rng) for fact in about)

    def few_shot_prompt(self) -> str:
        """Return questions and answers in the format of a few-shot prompt; the blank line is lm_eval's delimiter."""
        return "\n\n".join(str(self.example()) for _ in range(self.rng.choice((1, 1, 2, 3, 4, 5, 6))))

    def sums(self) -> str:
        """Return six sentences with numbers."""
        return " ".join(self.rng.choice((addition, counting))(self.rng).sentence for _ in range(6))

    def rules(self) -> str:
        """Return rules about kinds of animal, each applied several times.

        A single question teaches little about looking up the rule: only one of its tokens depends on it.
        """
        kinds = self.rng.sample(KINDS, self.rng.randint(2, 4))
        colours = dict(zip(kinds, self.rng.sample(COLOURS, len(kinds)), strict=True))
        lines = [f"Every {kind} is {colour}." for kind, colour in colours.items()]
        for _ in range(8):
            kind = self.rng.choice(kinds)
            lines.append(f"{self.rng.choice(PEOPLE)} has a {kind}. What colour is it? It is {colours[kind]}.")
        return " ".join(lines)

    def chat(self) -> str:
        """Return a chat: plain questions are answered by sentences, few-shot questions by short answers."""
        messages = []
        if self.rng.random() < 0.3:
            messages.append({"role": "system", "content": self.rng.choice(SYSTEM_MESSAGES)})
        few_shot = self.rng.random() < 0.6
        for _ in range(self.rng.choice((1, 1, 2, 3, 4))):
            example = self.example()
            prompt = f"Question: {example.question}\nAnswer:" if few_shot else example.question
            if few_shot and self.rng.random() < 0.2:
                prompt = f"{self.example()}\n\n{self.example()}\n\n{prompt}"
            messages.append({"role": "user", "content": prompt})
            messages.append({"role": "assistant", "content": example.answer if few_shot else example.sentence})
        return render_chat(messages)

    def tale(self) -> str:
        """Return a story, which may exceed the model's maximum length."""
        return story(self.world, self.rng, self.rng.choice((1, 2, 3, 4, 6, 12)))
