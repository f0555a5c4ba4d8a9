"""Verb frames: one line of a pattern file becomes many sentences and a question for every role of the clause.

    f past {E} :: wrote/write/written ~ composed/compose/composed :: obj=a poem; place=in [<Town>]; why=[to eat]

The first verb is for the sentence, the others are what a question may say instead. What stands in [ ] is the
answer of that role; without brackets the whole text is. A past clause gets a time of its own.
"""

import re
from dataclasses import dataclass

from data.builtin import world
from data.builtin.grammar import Pattern
from data.builtin.passage import PRONOUNS, Entity, Passage, Piece


@dataclass(eq=False)
class Clause:
    """One statement: `roles` maps a role to (text before, answer, text after)."""

    entity: Entity
    key: str
    tense: str
    subject: str
    verbs: list[list[str]]
    roles: dict[str, tuple[str, str, str]]

    @property
    def plural(self) -> bool:
        return not self.subject.startswith("{E}")

    def verb(self, which: int = 0) -> str:
        words = self.verbs[which]
        return words[1] if self.plural and self.tense == "pres" else words[0]

    def passive(self, which: int, many: bool) -> str:
        be = ("were" if many else "was") if self.tense == "past" else ("are" if many else "is")
        return f"{be} {self.verbs[which][2]}"

    def many(self) -> bool:
        """Whether the object is plural, going by its first word and its head noun."""
        text = self.roles["obj"][1]
        if re.match(r"(an?|one) (?!third|quarter)", text):
            return False
        if re.match(
            r"(two|three|four|five|six|seven|nine|ten|forty|several|many|some|half|an? (third|quarter)) ", text
        ):
            return True
        head = re.split(r" (?:of|for|from|to|in|with|near|as|into|and) ", text)[0]
        return " and " in text or (head.endswith("s") and not head.endswith(("ss", "us", "ics")))


def make(passage: Passage, pattern: Pattern, entity: Entity) -> Clause:
    draw, rng = passage.world, passage.rng
    head, verbs, rest = (part.strip() for part in pattern.text.split("::"))
    tense, subject = head.split(" ", 1)
    roles = {}
    for part in rest.split(";"):
        role, _, text = part.strip().partition("=")
        text = draw.expand(text)
        before, open_, inner = text.partition("[")
        answer, _, after = inner.partition("]")
        roles[role] = (before, answer, after) if open_ else ("", text, "")
        draw.fresh(lambda answer=roles[role][1]: answer)
    if tense == "past" and "time" not in roles:
        year = draw.start_year(entity) + rng.randint(0, 30)
        text = draw.fresh(
            lambda: rng.choice(
                (
                    str(year),
                    str(year),
                    str(year),
                    world.date(year, rng),
                    f"the {rng.choice(('spring', 'summer', 'autumn', 'winter'))} of {year}",
                )
            )
        )
        roles["time"] = ("on " if re.search(r"^\d+ [A-Z]| \d+,", text) else "in ", text, "")
    return Clause(
        entity, pattern.key, tense, draw.expand(subject), [v.strip().split("/") for v in re.split("[~,]", verbs)], roles
    )


def sentence(passage: Passage, clauses: list[Clause], form: str) -> list[Piece] | None:
    """The pieces of one sentence, or None where the form asks for a role that the clause hasn't."""
    rng, first = passage.rng, clauses[0]
    needed = [(name, int(digit or 1) - 1) for name, digit in re.findall(r"\[([a-z]+)(\d?)\]", form)]
    if any(name != "rest" and name not in clauses[which].roles for name, which in needed):
        return None
    if form.startswith("[obj] D") and (first.plural and first.tense == "past"):
        return None
    out: list[Piece] = []
    for token in re.findall(r"\[[a-z]+\d?\]|[A-Za-z]+\d?|[^A-Za-z\[\]]+", passage.world.expand(form)):
        if match := re.fullmatch(r"\[([a-z]+)(\d?)\]", token):
            which = int(match[2] or 1) - 1
            clause, named = clauses[which], {name for name, w in needed if w == which}
            names = [match[1]]
            if names == ["rest"]:
                names = [r for r in clause.roles if r not in named]
                names = [r for r in names if r != "why"][:2] + [r for r in names if r == "why"]
                names = [r for r in names if rng.random() < (0.8 if len(clauses) == 1 else 0.4)]
            for at, role in enumerate(names):
                before, answer, after = clause.roles[role]
                answer = answer.replace("{P}", PRONOUNS[clause.entity.pron][2])
                out += [Piece((" " if at else "") + before), Piece(answer, (clause, role)), Piece(after)]
        elif token in ("S", "O", "T"):
            subject = first.subject if token == "S" else first.subject.replace("{E}", "{T}")
            out += [Piece(piece.text) for piece in passage.pieces(subject, first.entity)]
        elif token == "N":
            out.append(Piece("they" if first.plural else PRONOUNS[first.entity.pron][0]))
        elif match := re.fullmatch(r"([VPB])(\d?)", token):
            clause = clauses[int(match[2] or 1) - 1]
            out.append(Piece({"V": clause.verb(), "P": clause.verbs[0][2], "B": clause.verbs[0][1]}[match[1]]))
        elif token == "D":
            out.append(Piece(first.passive(0, first.many())))
        else:
            out.append(Piece(token))
    return tidy(out)


def tidy(pieces: list[Piece]) -> list[Piece]:
    """No space before punctuation where a role was left out."""
    out: list[Piece] = []
    for piece in pieces:
        if not piece.text:
            continue
        text = piece.text
        if out and text[0] in ".,;":
            while out and not out[-1].text.strip() and not out[-1].fact:
                out.pop()
            if not out[-1].fact:
                out[-1] = Piece(out[-1].text.rstrip())
        if out and out[-1].text.endswith(" ") and text.startswith(" "):
            text = text.lstrip()
        out.append(Piece(text, piece.fact))
    return [piece for piece in out if piece.text]


def question(passage: Passage, clause: Clause, role: str, form: str, name: str) -> str | None:
    """A question for `role`; None where the form needs what the passage doesn't state."""
    rng = passage.rng
    which = rng.randrange(len(clause.verbs))
    obj = clause.roles["obj"][0] + clause.roles["obj"][1] + clause.roles["obj"][2]
    if "{P}" in obj:
        if role == "subj" or " D " in f" {form} ":
            return None
        obj = obj.replace("{P}", PRONOUNS[clause.entity.pron][2])
    definite = re.sub(r"^an? ", "the ", obj) if clause.tense == "past" else obj
    subject = clause.subject.replace("{E}", name).replace("{T}", name)
    if clause.subject != "{E}" and role == "subj":
        return None
    person = clause.entity.topic.pron == "person"
    if not person and form.startswith(("By whom", "X D by whom")):
        return None
    for extra in re.findall(r"\[\?(\w+)\]", form):
        said = extra in clause.roles and extra != role and (clause, extra) in passage.stated
        form = form.replace(
            f"[?{extra}]",
            " " + "".join(clause.roles[extra]).replace("{P}", PRONOUNS[clause.entity.pron][2]) if said else "",
        )
    if "year" in form and not re.fullmatch(r"\d{4}", clause.roles["time"][1]):
        return None
    do = "did" if clause.tense == "past" else ("do" if clause.plural else "does")
    noun = clause.entity.topic.noun
    who = rng.choice(("Who", "Who", f"Which {noun}")) if person else rng.choice((f"Which {noun}", f"What {noun}"))
    many = clause.many() if role != "obj" else False
    if clause.tense == "pres":
        form = (
            form.replace("What was the reason", "What is the reason")
            .replace("What led", "What leads")
            .replace("Who was", "Who is")
            .replace("What made", "What makes")
            .replace("What caused", "What causes")
        )
    else:
        form = form.replace("What is used", "What was used").replace("What is needed", "What was needed")
    words = {
        "S": subject,
        "O": subject,
        "V": clause.verb(which),
        "B": clause.verbs[which][1],
        "P": clause.verbs[which][2],
        "D": clause.passive(which, many),
        "X": definite,
        "DO": do,
        "WHO": who,
        "NOUN": noun,
    }
    if " D X" in form or " D X?" in form:  # inversion: "when was the poem written"
        be, _, participle = words["D"].partition(" ")
        form = form.replace("D X", f"{be} X {participle}")
    text = re.sub(r"\b(DO|WHO|NOUN|[SOVBPDX])\b", lambda m: words[m[1]], form)
    return text[0].upper() + text[1:]
