"""Reads the pattern files and expands their little language.

    topic bridge            a kind of thing; all that follows is about it
    base person             starts with all that the topic person has, but its introductions
    name / short / pron     how it is called: full names, "the bridge", "it" or "she"
    slot opened = year 1780..1960        something to know about it, and how the value is drawn
    rel architect = the designer of {E}  how the value can be called in a question without naming it
    i / s / q SLOT          introducing sentence, sentence, question whose answer is SLOT
    f                       verb frame: a clause with roles, see clauses.py
    bank x = a | b          words for <x>

Inside a line: (a|b) chooses, <x> takes from a bank, [slot] states a value, {E} {O} {P} mention the topic as
subject, object, possessive. A keyword with "!" marks a pattern that only the dev-patterns split may use.
"""

import random
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "patterns"
AN = re.compile(r"\b([Aa]) (?=(?!uni|use|usu|eu|one)[aeiou]|hour|honest)")
ROUND = str.maketrans("（）", "()")  # patterns write the brackets of prose in full width
CHOICE = re.compile(r"\(([^()]*)\)|<(\w+)>")


@dataclass(frozen=True)
class Pattern:
    key: str  # file:line, so that a test or a reader can find it again
    text: str
    dev: bool
    slots: tuple[str, ...]
    about: str = ""  # the slot a question asks for


@dataclass
class Topic:
    name: str
    names: str = ""
    short: str = ""
    pron: str = "it"
    noun: str = "thing"
    slots: dict[str, str] = field(default_factory=dict)
    rels: dict[str, str] = field(default_factory=dict)
    intros: list[Pattern] = field(default_factory=list)
    sentences: list[Pattern] = field(default_factory=list)
    questions: list[Pattern] = field(default_factory=list)
    frames: list[Pattern] = field(default_factory=list)


@dataclass
class Patterns:
    topics: dict[str, Topic]
    banks: dict[str, list[str]]


def split_top(text: str, mark: str = "|") -> list[str]:
    """Split at `mark` outside parentheses."""
    parts, depth, last = [], 0, 0
    for at, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if char == mark and depth == 0:
            parts.append(text[last:at].strip())
            last = at + 1
    if depth:
        raise ValueError(f"unbalanced parentheses in pattern: {text}")
    return parts + [text[last:].strip()]


def expand(text: str, rng: random.Random, banks: dict) -> str:
    """Choose until nothing is left to choose. A bank is a list of texts or a function that makes one."""
    while True:
        found = CHOICE.search(text)
        if found is None:
            text = re.sub(r" {2,}", " ", text).replace(" ,", ",").replace(" .", ".").replace(" ?", "?").strip()
            return AN.sub(r"\1n ", text).translate(ROUND)
        if found[2]:
            bank = banks[found[2]]
            chosen = str(bank() if callable(bank) else rng.choice(bank))
        else:
            chosen = rng.choice(found[1].split("|"))
        text = text[: found.start()] + chosen + text[found.end() :]


@cache
def patterns() -> Patterns:
    """All pattern files, in the order of their names."""
    topics: dict[str, Topic] = {}
    banks: dict[str, list[str]] = {}
    for path in sorted(FOLDER.glob("*.txt")):
        topic = Topic("")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            line = line.split("#")[0].strip()
            if not line:
                continue
            word, _, rest = line.partition(" ")
            rest, dev, keyword = rest.strip(), word.endswith("!"), word.rstrip("!")
            where = f"{path.stem}:{number}"
            if not topic.name and keyword not in ("bank", "topic"):
                raise ValueError(f"{where}: '{keyword}' before the first 'topic' of the file: {line}")
            if keyword in ("bank", "slot", "rel"):
                left, equals, right = (part.strip() for part in rest.partition("="))
                if not equals:
                    raise ValueError(f"{where}: '{keyword}' needs 'name = value', saw: {line}")
                if keyword == "bank":
                    banks[left] = split_top(right)
                else:
                    (topic.slots if keyword == "slot" else topic.rels)[left] = right
            elif keyword == "topic":
                topic = topics[rest] = Topic(rest)
            elif keyword == "base":
                parent = topics[rest]
                topic.names, topic.short, topic.pron = parent.names, parent.short, parent.pron
                topic.slots.update(parent.slots)
                topic.rels.update(parent.rels)
                for mine, theirs in (
                    (topic.sentences, parent.sentences),
                    (topic.questions, parent.questions),
                    (topic.frames, parent.frames),
                ):
                    mine.extend(theirs)
            elif keyword in ("name", "short", "pron", "noun"):
                setattr(topic, "names" if keyword == "name" else keyword, rest)
            elif keyword in ("i", "s", "q", "f"):
                about = ""
                if keyword == "q":
                    about, _, rest = rest.partition(" ")
                    rest = rest.strip()
                # Slots inside (a|b) may go unused; a sentence is only offered when all it could state is still free.
                slots = tuple(dict.fromkeys(re.findall(r"\[(\w+)\]", rest))) if keyword != "f" else ()
                unknown = [slot for slot in (*slots, *([about] if about else [])) if slot not in topic.slots]
                if unknown:
                    raise ValueError(f"{where}: topic {topic.name} has no slot {unknown}; it has {list(topic.slots)}")
                split_top(rest)
                shelf = dict(i=topic.intros, s=topic.sentences, q=topic.questions, f=topic.frames)[keyword]
                shelf.append(Pattern(where, rest, dev, slots, about))
            else:
                raise ValueError(
                    f"{where}: unknown keyword '{word}'; known: topic name short pron noun base slot rel i s q f bank"
                )
    for topic in topics.values():
        for pattern in (*topic.intros, *topic.sentences, *topic.questions, *topic.frames):
            for bank in re.findall(r"<(\w+)>", pattern.text):
                if bank not in banks and bank not in DYNAMIC:
                    raise ValueError(f"{pattern.key}: no bank <{bank}>")
    return Patterns(topics, banks)


DYNAMIC = ("Stem", "Town", "Surname", "First", "Person", "Year")
