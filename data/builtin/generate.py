"""Passages about the invented world with questions on them: the same seed gives the same bytes on any machine.

`train` uses the training half of the names and patterns, `dev-facts` the other half of the names, and
`dev-patterns` the other half of the names with sentences and questions that train never contains.
"""

import random
import re
from dataclasses import dataclass

from data.builtin import clauses, forms
from data.builtin.grammar import Topic, patterns
from data.builtin.passage import PRONOUNS, Entity, Passage, World

SPLITS = {
    "train": (False, False),
    "dev-facts": (True, False),
    "dev-patterns": (True, True),
}  # held-out names, dev patterns
LENGTH_WORDS = (60, 130)
MAX_ANSWER_WORDS = 8
QUESTIONS_PER_PASSAGE = 6


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    start: int  # -1 when unanswerable
    key: str  # the question's pattern


@dataclass
class Made:
    """One passage with all that tests and readers want to know about its making."""

    title: str
    context: str
    questions: list[Question]
    keys: list[str]  # patterns of the sentences
    names: list[str]  # of the things it is about
    stated: set[tuple[str, str]]  # (name, slot) that the passage gives away


def passages(part: str, seed: int, version: str):
    """Endless stream of passages."""
    held_out, dev = SPLITS[part]
    rng = random.Random(f"retort {part} {seed} {version}")
    topics = list(patterns().topics.values())
    while True:
        try:
            made = one_passage(rng, rng.choice([t for t in topics if usable(t, dev)]), held_out, dev, version)
        except LookupError:  # a bank ran dry: the passage would have said the same thing twice
            continue
        if made:
            yield made


def usable(topic: Topic, dev: bool) -> bool:
    return (
        any(p.dev == dev for p in topic.intros)
        and sum(p.dev == dev for p in topic.sentences) + 2 * len(topic.frames) >= 4
    )


def one_passage(rng: random.Random, topic: Topic, held_out: bool, dev: bool, version: str) -> Made | None:
    draw = World(patterns(), rng, held_out)
    passage = Passage(draw)
    first = draw.entity(topic.name)
    goal = rng.randint(68, 112)
    mode = rng.choice(("pair", "pair", "related", "related", "single"))
    said: list[clauses.Clause] = []
    entities = [first]
    block(passage, first, goal if mode == "single" else goal * 0.6, dev, said)
    if mode == "related":
        stated = [v.entity for s, v in first.values.items() if v.entity and (first, s) in passage.stated]
        stated = [e for e in stated if usable(e.topic, dev)]
        if not stated:
            mode = "pair"
        else:
            entities.append(rng.choice(stated))
    if mode == "pair":
        entities.append(draw.entity(topic.name))
    if len(entities) == 2 and not block(passage, entities[1], goal, dev, said):
        entities.pop()
    if not LENGTH_WORDS[0] <= passage.words() <= LENGTH_WORDS[1]:
        return None
    asked = ask(passage, entities, said, dev, version, mode)
    if len(asked) < 3:
        return None
    title = re.sub("^the ", "", first.name)
    return Made(
        title[0].upper() + title[1:],
        passage.text,
        asked,
        passage.keys,
        [e.name for e in entities],
        {(subject.name, slot) for subject, slot in passage.stated if isinstance(subject, Entity)},
    )


def block(passage: Passage, entity: Entity, until_words: float, dev: bool, said: list) -> bool:
    """An introduction, then facts until there are enough words; False where no introduction is left to use."""
    rng, topic = passage.rng, entity.topic
    passage.focus = None
    intros = [p for p in topic.intros if p.dev == dev]
    plain = [p for p in topic.sentences if p.dev == dev]
    frames = list(topic.frames)
    for shelf in (plain, frames):
        rng.shuffle(shelf)
    used: set[str] = {clause.key for clause in said}
    stated: set[str] = set()
    if not (intros := [p for p in intros if p.key not in passage.keys]):
        return False
    pattern = rng.choice(intros)
    state(passage, entity, pattern, stated)
    while passage.words() < until_words and (plain or frames):
        if plain and (not frames or rng.random() < 0.62):
            pattern = plain.pop()
            if not stated.intersection(pattern.slots) and pattern.key not in passage.keys:
                state(passage, entity, pattern, stated)
        elif frames:
            frame = frames.pop()
            if frame.key not in used:
                made = [clauses.make(passage, frame, entity)]
                if frames and made[0].tense == "past" and not made[0].plural and rng.random() < 0.3:
                    other = frames[-1]
                    if other.key not in used and other.text.startswith("past {E} "):
                        made.append(clauses.make(passage, frames.pop(), entity))
                state_clause(passage, entity, made, dev)
                said.extend(made)
    return True


def state(passage: Passage, entity: Entity, pattern, stated: set[str]) -> None:
    text = passage.world.expand(pattern.text)
    passage.add(passage.pieces(text, entity), entity, pattern.key)
    stated.update(re.findall(r"\[(\w+)\]", text))


def state_clause(passage: Passage, entity: Entity, made: list, dev: bool) -> None:
    single, pairs = (forms.DEV_FORMS, forms.DEV_PAIRS) if dev else (forms.FORMS, forms.PAIRS)
    shapes = pairs if len(made) == 2 else single
    if entity.topic.pron != "person":
        shapes = [form.replace("who had", "which had") for form in shapes]
    if made[0].tense == "pres":
        shapes = [form for form in shapes if form[0] == "S" or "by O" in form] or shapes
    while True:
        form = passage.rng.choice(shapes)
        pieces = clauses.sentence(passage, made, form)
        if pieces:
            passage.add(pieces, entity, ("dev form: " if dev else "form: ") + form)
            return


def refer(passage: Passage, entities: list[Entity], entity: Entity, mode: str) -> str:
    """How a question calls the thing: its name, "the bridge" where there is one only, or by its relation."""
    rng, first = passage.rng, entities[0]
    if mode == "related" and entity is not first and rng.random() < 0.3:
        for slot, text in first.topic.rels.items():
            if slot in first.values and first.values[slot].entity is entity:
                return passage.world.expand(text).replace("{E}", first.name)
    alone = all(e is entity or e.topic is not entity.topic for e in entities)
    if alone and entity.shorts and rng.random() < 0.2:
        return rng.choice(entity.shorts)
    return entity.name


def possessive(name: str) -> str:
    return name + ("'" if name.endswith("s") else "'s")


def ask(passage: Passage, entities, said, dev: bool, version: str, mode: str) -> list[Question]:
    """At most one question a fact, in random order; in version 2.0 about a third about facts that are not stated."""
    rng = passage.rng
    answerable, impossible = [], []
    for entity in entities:
        for slot in entity.topic.slots:
            options = [p for p in entity.topic.questions if p.about == slot and p.dev == dev]
            if options:
                known = (entity, slot) in passage.stated
                (answerable if known else impossible).append((entity, slot, options))
    for clause in said:
        asks = forms.DEV_ASK if dev else forms.ASK
        for role in asks:
            known = (clause, role) in passage.stated or (role == "subj" and (clause, "obj") in passage.stated)
            if known or role in ("time", "place", "why", "with", "how"):
                (answerable if known else impossible).append((clause, role, asks[role]))
    out: list[Question] = []
    wanted = rng.randint(4, QUESTIONS_PER_PASSAGE)
    for shelf, count in (
        (answerable, wanted if version == "1.1" else max(2, round(wanted * 2 / 3))),
        (impossible, 0 if version == "1.1" else wanted - max(2, round(wanted * 2 / 3))),
    ):
        rng.shuffle(shelf)
        made = 0
        for subject, slot, options in shelf:
            if made == count:
                break
            question = build(passage, entities, subject, slot, rng.choice(options), mode, shelf is answerable)
            if question and all(question.text != other.text for other in out):
                out.append(question)
                made += 1
    rng.shuffle(out)
    return out


def build(passage: Passage, entities, subject, slot: str, option, mode: str, known: bool) -> Question | None:
    if isinstance(subject, clauses.Clause):
        entity = subject.entity
        name = refer(passage, entities, entity, mode)
        text = clauses.question(passage, subject, slot, passage.world.expand(option), name)
        key = f"{'' if known else 'not stated '}{slot}: {option}"
        if slot == "subj" and known:
            if (start := passage.text.lower().find(entity.name.lower())) < 0:
                return None
            place = (start, start + len(entity.name))
        else:
            place = passage.stated.get((subject, slot), (-1, -1))
    else:
        entity, key = subject, option.key
        if any((entity, other) not in passage.stated for other in option.slots):
            return None
        name = refer(passage, entities, entity, mode)
        text = passage.world.expand(option.text)
        named = text.find("{E}")
        if 0 <= named < text.find("{P}"):
            text = text.replace("{P}", PRONOUNS[entity.pron][2])
        text = text.replace("{E}", name).replace("{P}", possessive(name))
        text = re.sub(r"\[(\w+)\]", lambda m: passage.world.value(entity, m[1]).text, text)
        place = passage.stated.get((entity, slot), (-1, -1))
    if not text:
        return None
    text = re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text[0].upper() + text[1:])
    if not known:
        return Question(text, "", -1, key)
    answer = passage.text[place[0] : place[1]]
    if answer.lower() in text.lower() or len(answer.split()) > MAX_ANSWER_WORDS:
        return None
    same = re.findall(rf"(?<!\w){re.escape(answer.lower())}(?!\w)", passage.text.lower())
    is_name = (answer[0].isupper() and not answer.split()[0].isdigit()) or answer.startswith(("the ", "The "))
    if len(same) != 1 and not is_name:
        return None  # the same words answer something else, too
    return Question(text, answer, place[0], key)


def squad(part: str, count: int, seed: int, version: str) -> dict:
    """The first `count` questions of the stream, as SQuAD JSON."""
    data, total, seen = [], 0, set()
    for made in passages(part, seed, version):
        questions = [q for q in made.questions if q.text not in seen][: count - total]
        if not questions or made.context in seen:
            continue
        seen.update(q.text for q in questions)
        seen.add(made.context)
        qas = []
        for question in questions:
            qa = {
                "id": f"{part}-{seed}-{total:06d}",
                "question": question.text,
                "answers": [{"text": question.answer, "answer_start": question.start}] if question.start >= 0 else [],
            }
            if version == "2.0":
                qa["is_impossible"] = question.start < 0
            qas.append(qa)
            total += 1
        data.append({"title": made.title, "paragraphs": [{"context": made.context, "qas": qas}]})
        if total >= count:
            break
    return {"version": version, "data": data}
