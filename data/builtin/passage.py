"""Things with facts, and the passage that states them: every stated fact keeps its exact place in the text."""

import random
import re
from dataclasses import dataclass, field

from data.builtin import world
from data.builtin.grammar import Patterns, Topic, expand, split_top

PRONOUNS = {"it": ("it", "it", "its"), "she": ("she", "her", "her"), "he": ("he", "him", "his")}
MONTH = re.compile(r"[A-Z][a-z]+ \d{4}$")
FULL_DATE = re.compile(r"\d+ [A-Z]|[A-Z][a-z]+ \d+,")
LAST_YEAR = 2020
BEGINNINGS = ("founded", "built", "launched", "opened", "described", "year", "expyear", "crowned")
TOKEN = re.compile(r"\[(\w+)\]|\{([EOPT])\}")


@dataclass
class Value:
    text: str
    number: int = 0
    entity: "Entity | None" = None


@dataclass(eq=False)
class Entity:
    topic: Topic
    name: str
    shorts: list[str]
    pron: str
    values: dict[str, Value] = field(default_factory=dict)
    first_year: int = 0  # earliest year in which it can do anything


class World:
    """Draws things and their facts; within one passage no two facts have the same text."""

    def __init__(self, patterns: Patterns, rng: random.Random, held_out: bool):
        self.patterns, self.rng = patterns, rng
        self.namer = world.Namer(rng, held_out)
        self.used: set[str] = set()  # membership only, never iterated: order would differ between machines
        self.banks: dict = dict(patterns.banks)
        self.banks.update(
            Stem=self.namer.stem,
            Town=self.namer.town,
            Surname=self.namer.surname,
            First=lambda: rng.choice(world.FEMALE + world.MALE),
            Person=self.person_name,
            Year=lambda: str(rng.randint(1700, 2005)),
        )

    def expand(self, text: str) -> str:
        return expand(text, self.rng, self.banks)

    def person_name(self, first: str | None = None) -> str:
        rng = self.rng
        first = first or rng.choice(world.FEMALE if rng.random() < 0.5 else world.MALE)
        if rng.random() < 0.08:
            first += f" {rng.choice('ABCDEFGHJKLMNPRSTW')}."
        return f"{first} {self.namer.surname()}"

    def fresh(self, make):
        """Draw until the text is new in this passage; also never part of, or around, an earlier text."""
        for _ in range(60):
            text = make()
            low = text.lower()
            if low not in self.used and not any(
                low in old or old in low for old in self.used if min(len(low), len(old)) > 2
            ):
                self.used.add(low)
                return text
        raise LookupError(text)

    def entity(self, topic_name: str) -> Entity:
        topic, rng = self.patterns.topics[topic_name], self.rng
        if topic.pron == "royal":
            pron, title = rng.choice((("she", "Queen"), ("he", "King")))
            name = self.fresh(lambda: self.expand(topic.names.replace("{title}", title)))
            return Entity(topic, name, [f"the {title.lower()}", "the ruler", "the monarch"], pron)
        if topic.pron == "person":
            pron = rng.choice(("she", "he"))
            name = self.fresh(lambda: self.person_name(rng.choice(world.FEMALE if pron == "she" else world.MALE)))
            self.used.add(name.split()[-1].lower())
            return Entity(topic, name, [name.split()[-1]], pron)

        def make() -> str:
            while True:
                drawn = self.namer.drawn
                name = self.expand(rng.choice(split_top(topic.names)))
                # A name of ordinary words only has no stem that says which half of the world it is of.
                if self.namer.drawn > drawn or world.is_held_out(name) == self.namer.held_out:
                    return name

        name = self.fresh(make)
        return Entity(topic, name, [self.expand(s) for s in split_top(topic.short)], topic.pron)

    def value(self, entity: Entity, slot: str) -> Value:
        if slot not in entity.values:
            entity.values[slot] = self._draw(entity, entity.topic.slots[slot])
        return entity.values[slot]

    def start_year(self, entity: Entity) -> int:
        if not entity.first_year:
            slots = entity.topic.slots
            if "born" in slots:
                entity.first_year = self.value(entity, "born").number + 21
            else:
                began = next((s for s in BEGINNINGS if s in slots), None)
                entity.first_year = (self.value(entity, began).number + 1) if began else self.rng.randint(1700, 1980)
        return entity.first_year

    def _draw(self, entity: Entity, spec: str) -> Value:
        rng = self.rng
        kind, _, rest = spec.partition(" ")
        if kind == "entity":
            other = self.entity(rest)
            began = next((s for s in BEGINNINGS if s in entity.topic.slots), None)
            if "born" in other.topic.slots and began:  # grown up when the work begins
                year = self.value(entity, began).number - rng.randint(25, 45)
                other.values["born"] = Value(str(year), year)
            elif "founded" in other.topic.slots and began and entity.topic.name != "river":
                year = self.value(entity, began).number - rng.randint(3, 60)
                other.values["founded"] = Value(str(year), year)
            return Value(other.name, entity=other)
        if kind == "pick":
            return Value(self.fresh(lambda: self.expand(rest)))
        if kind == "list":
            size, bank = rest.split(" ", 1)
            low, high = map(int, size.split(".."))

            def make_list() -> str:
                items: list[str] = []
                while len(items) < (count if len(bank) else 2):
                    item = self.expand(bank)
                    if item not in items:
                        items.append(item)
                return ", ".join(items[:-1]) + " and " + items[-1]

            count = rng.randint(low, high)
            return Value(self.fresh(make_list))
        span, _, unit = rest.partition(" ")
        base, plus, more = span.partition("+")
        offset = self.value(entity, base).number if plus else 0
        low, high = map(int, (more if plus else span).split(".."))
        if kind in ("year", "date"):
            high = max(low, min(high, LAST_YEAR - offset))
        drawn = [0]

        def make() -> str:
            value = drawn[0] = offset + rng.randint(low, high)
            if kind == "year":
                return str(value)
            if kind == "date":
                return world.date(value, rng)
            if kind == "percent":
                return f"{value}{rng.choice((' percent', ' per cent', '%'))}"
            value = drawn[0] = value if kind in ("count", "span") and value < 100 else world.round_off(value, rng)
            text = world.number(value, words=rng.random() < 0.9)
            if kind == "count":
                return text
            name = self.expand(unit)
            return f"{text} {name}" if kind in ("num", "span") else f"{world.number(value, False)} {name}"

        return Value(self.fresh(make), drawn[0])


@dataclass
class Piece:
    text: str
    fact: tuple | None = None  # (entity, slot) that this text states


class Passage:
    """Text under construction. `stated` maps (entity, slot) to its characters [start, end)."""

    def __init__(self, world_: World):
        self.world, self.rng = world_, world_.rng
        self.text = ""
        self.stated: dict[tuple, tuple[int, int]] = {}
        self.keys: list[str] = []
        self.focus: Entity | None = None  # whom a pronoun would mean
        self.names_only = False  # after a second thing of the same kind "the bridge" is ambiguous

    def words(self) -> int:
        return len(self.text.split())

    def mention(self, entity: Entity, case: str, again: bool) -> str:
        forms = PRONOUNS[entity.pron]
        roll = self.rng.random()
        if case != "T" and (again or (self.focus is entity and roll < 0.5)):
            return forms["EOP".index(case)]
        if (again or self.focus is entity) and roll < 0.85 and entity.shorts:
            name = self.rng.choice(entity.shorts)
        else:
            name = entity.name
        if case == "P" and name.endswith('"'):
            name = entity.shorts[0]
        return name + ("'" if name.endswith("s") else "'s") * (case == "P")

    def pieces(self, text: str, entity: Entity) -> list[Piece]:
        """Fill an expanded pattern with mentions and values."""
        out, at, again = [], 0, False
        for found in TOKEN.finditer(text):
            out.append(Piece(text[at : found.start()]))
            if found[1]:
                value = self.world.value(entity, found[1]).text
                if FULL_DATE.match(value) and out[-1].text.lower().endswith("in "):
                    before = out[-1].text
                    out[-1].text = before[:-3] + ("On " if before.endswith("In ") else "on ")
                elif MONTH.match(value) and out[-1].text.lower().endswith("on "):
                    out[-1].text = out[-1].text[:-3] + ("In " if out[-1].text.endswith("On ") else "in ")
                out.append(Piece(value, (entity, found[1])))
            else:
                out.append(Piece(self.mention(entity, found[2], again)))
                again = True
            at = found.end()
        return out + [Piece(text[at:])]

    def add(self, pieces: list[Piece], entity: Entity, key: str) -> None:
        pieces = [piece for piece in pieces if piece.text]
        if self.text:
            self.text += " "
        begin = len(self.text)
        sentence = ""
        marks = []
        for piece in pieces:
            sentence = world.an(sentence, piece.text)
            if piece.fact:
                marks.append((piece.fact, len(sentence), len(sentence) + len(piece.text)))
            sentence += piece.text
        self.text += sentence[0].upper() + sentence[1:]
        for fact, start, end in marks:
            self.stated.setdefault(fact, (begin + start, begin + end))
        self.keys.append(key)
        self.focus = entity
