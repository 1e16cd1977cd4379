"""The lab's language: kinds of things, their facts, and many ways to say each fact.

The grammar is invertible: every sentence it writes can be parsed back to `(subject, attribute,
value)`. The lab's question writer and paraphraser rely on that and on nothing else: they see only
the text that they are sent.
"""

import random
import re
from dataclasses import dataclass
from functools import cache
from itertools import product


def _words(stems: str, endings: str) -> tuple[str, ...]:
    return tuple(a + b for a, b in product(stems.split(), endings.split()))


POOLS: dict[str, tuple[str, ...]] = {
    "town": _words("Ash Brim Cald Dun Ever Frost Green Hart Ivel King", "wick ford haven stead"),
    "person": _words("Ab Bre Cas Del Em Fal Gri Hes Is Jar Kir Lin", "ric ulda ton wen mir"),
    "society": _words("Star Stone Wind Wave Flame Leaf", "wardens keepers singers makers readers"),
    "mountain": _words("Crag Snow Thorn Mist Raven Bleak", "peak horn fell tor"),
    "number": tuple(str(n) for n in range(12, 72)),
    "animal": tuple(
        "otter heron badger lynx salmon pike trout eel falcon owl fox hare stag boar wolf bear "
        "crane swan toad newt perch carp viper raven".split()
    ),
    "good": tuple(
        "copper wool amber salt honey linen barley cider tin glass cheese ink rope leather saffron "
        "velvet pearl ivory wax coal flax paper silver cedar jade quartz marble pepper tea "
        "soap".split()
    ),
    "colour": tuple(
        "red blue green white golden violet crimson orange pale black brown pink turquoise grey "
        "scarlet indigo".split()
    ),
}
"""Values of facts, by type. Each is one word, so that an answer is one token of the lab models."""

NAME_STEMS = _words("Bal Cor Dra Eld Fen Gor Hal Ith Jor Kel Lor Mor", "an eth iva ost une")


@dataclass(frozen=True)
class Attribute:
    """One kind of fact, e.g. who led an event.

    Attributes:
        pool: Key of `POOLS` that values come from.
        statements: Sentences with `{s}` (subject, with its article) and `{v}` (value).
        questions: Questions with `{s}`, each with the value as the single answer.
    """

    pool: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of thing that articles are about.

    Attributes:
        heads: Second words of names: `the Balan Accord` is an event, as `Accord` is in its heads.
        attributes: Facts that each thing of the kind has.
    """

    heads: tuple[str, ...]
    attributes: dict[str, Attribute]


KINDS: dict[str, Kind] = {
    "events": Kind(
        tuple(
            "Accord Trial Summit Parade Storm Strike Fair Race Siege Gala Election Flood Fire "
            "Inquiry Merger Landing Protest Auction Rescue Debate Opening Tour Contest Vote".split()
        ),
        {
            "place": Attribute(
                "town",
                (
                    "{s} took place in {v}.",
                    "{s} happened in {v}.",
                    "{s} was held in {v}.",
                    "It was in {v} that {s} took place.",
                    "The town of {v} saw {s}.",
                    "{v} was the place of {s}.",
                    "People came to {v} for {s}.",
                    "The place of {s} was {v}.",
                    "In {v} people remember {s}.",
                    "{v} was chosen for {s}.",
                ),
                (
                    "Where did {s} take place?",
                    "In which town was {s} held?",
                    "Which town saw {s}?",
                    "What was the place of {s}?",
                ),
            ),
            "leader": Attribute(
                "person",
                (
                    "{s} was led by {v}.",
                    "{v} led {s}.",
                    "The leader of {s} was {v}.",
                    "{v} was in charge of {s}.",
                    "At the head of {s} stood {v}.",
                    "{s} had {v} as its leader.",
                    "It was {v} who led {s}.",
                    "People saw {v} at the head of {s}.",
                    "{v} was named leader of {s}.",
                    "{s} followed the lead of {v}.",
                ),
                (
                    "Who led {s}?",
                    "Who was the leader of {s}?",
                    "Who was in charge of {s}?",
                    "Who stood at the head of {s}?",
                ),
            ),
            "payer": Attribute(
                "society",
                (
                    "{s} was paid for by the {v}.",
                    "The {v} paid for {s}.",
                    "The money for {s} came from the {v}.",
                    "The {v} gave the money for {s}.",
                    "It was the {v} who paid for {s}.",
                    "{s} had its money from the {v}.",
                    "The cost of {s} fell to the {v}.",
                    "The {v} bore the cost of {s}.",
                    "{s} was backed by the {v}.",
                    "The {v} backed {s}.",
                ),
                (
                    "Which society paid for {s}?",
                    "Who gave the money for {s}?",
                    "Which society backed {s}?",
                    "Who bore the cost of {s}?",
                ),
            ),
            "guests": Attribute(
                "number",
                (
                    "{s} drew {v} guests.",
                    "{v} guests came to {s}.",
                    "There were {v} guests at {s}.",
                    "{s} was seen by {v} guests.",
                    "The number of guests at {s} was {v}.",
                    "A count of {v} guests was made at {s}.",
                    "{s} counted {v} guests.",
                    "As many as {v} guests joined {s}.",
                    "{v} was the number of guests at {s}.",
                    "In all {v} guests saw {s}.",
                ),
                (
                    "How many guests came to {s}?",
                    "What was the number of guests at {s}?",
                    "How many guests did {s} draw?",
                    "How many guests saw {s}?",
                ),
            ),
            "gift": Attribute(
                "good",
                (
                    "{s} ended with a gift of {v}.",
                    "A gift of {v} was made at {s}.",
                    "The gift of {s} was {v}.",
                    "{v} was given at {s}.",
                    "Those at {s} were given {v}.",
                    "{s} is known for its gift of {v}.",
                    "There was {v} for those who came to {s}.",
                    "People took home {v} from {s}.",
                    "At the end of {s} there was {v}.",
                    "{s} gave {v} to those who came.",
                ),
                (
                    "What was given at {s}?",
                    "What was the gift of {s}?",
                    "What did people take home from {s}?",
                    "Which gift was made at {s}?",
                ),
            ),
        },
    ),
    "rivers": Kind(
        tuple(
            "River Brook Water Stream Run Flow Rapids Creek Bourne Rill Beck Burn Fork Branch Arm "
            "Reach Bend Channel Current Delta Ford Torrent Wash Falls".split()
        ),
        {
            "source": Attribute(
                "mountain",
                (
                    "{s} rises on {v}.",
                    "{s} has its source on {v}.",
                    "The source of {s} is on {v}.",
                    "{s} springs from {v}.",
                    "{v} is where {s} rises.",
                    "The snow of {v} feeds {s}.",
                    "{s} begins on {v}.",
                    "From {v} comes {s}.",
                    "{v} holds the source of {s}.",
                    "{s} is fed by the snow of {v}.",
                ),
                (
                    "On which mountain does {s} rise?",
                    "Where is the source of {s}?",
                    "Which mountain feeds {s}?",
                    "Where does {s} begin?",
                ),
            ),
            "mouth": Attribute(
                "town",
                (
                    "{s} meets the sea at {v}.",
                    "{s} ends at {v}.",
                    "The mouth of {s} is at {v}.",
                    "{s} runs to the sea at {v}.",
                    "{v} lies at the mouth of {s}.",
                    "The sea takes {s} at {v}.",
                    "{s} flows out at {v}.",
                    "At {v} the sea meets {s}.",
                    "{v} is where {s} ends.",
                    "Ships enter {s} at {v}.",
                ),
                (
                    "Which town lies at the mouth of {s}?",
                    "Where does {s} meet the sea?",
                    "Where does {s} end?",
                    "Where is the mouth of {s}?",
                ),
            ),
            "length": Attribute(
                "number",
                (
                    "{s} is {v} leagues long.",
                    "{s} runs for {v} leagues.",
                    "The length of {s} is {v} leagues.",
                    "{v} leagues is the length of {s}.",
                    "{s} has a length of {v} leagues.",
                    "It is {v} leagues from end to end of {s}.",
                    "{s} covers {v} leagues.",
                    "For {v} leagues runs {s}.",
                    "{s} measures {v} leagues.",
                    "Over {v} leagues flows {s}.",
                ),
                (
                    "How many leagues long is {s}?",
                    "What is the length of {s} in leagues?",
                    "How many leagues does {s} run?",
                    "How long is {s}?",
                ),
            ),
            "life": Attribute(
                "animal",
                (
                    "{s} is known for the {v}.",
                    "The {v} lives in {s}.",
                    "In {s} lives the {v}.",
                    "The {v} is at home in {s}.",
                    "{s} is home to the {v}.",
                    "People look for the {v} in {s}.",
                    "The animal of {s} is the {v}.",
                    "One can see the {v} in {s}.",
                    "{s} is full of the {v}.",
                    "The {v} is often seen in {s}.",
                ),
                (
                    "Which animal lives in {s}?",
                    "Which animal is {s} known for?",
                    "What is the animal of {s}?",
                    "Which animal is at home in {s}?",
                ),
            ),
            "bridge": Attribute(
                "person",
                (
                    "{v} built the bridge over {s}.",
                    "The bridge over {s} was built by {v}.",
                    "{s} is crossed by the bridge of {v}.",
                    "The bridge of {v} crosses {s}.",
                    "It was {v} who built the bridge over {s}.",
                    "Over {s} goes the bridge of {v}.",
                    "The builder of the bridge over {s} was {v}.",
                    "{s} has a bridge made by {v}.",
                    "{v} made the bridge over {s}.",
                    "A bridge by {v} stands over {s}.",
                ),
                (
                    "Who built the bridge over {s}?",
                    "Whose bridge crosses {s}?",
                    "Who was the builder of the bridge over {s}?",
                    "Who made the bridge over {s}?",
                ),
            ),
        },
    ),
    "guilds": Kind(
        tuple(
            "Guild Lodge House Union League Company Order Circle Hall Bench Chapter Court Table "
            "Society Brothers Masters Hands Works Trust Bond Ring Crew Band Chamber".split()
        ),
        {
            "seat": Attribute(
                "town",
                (
                    "{s} has its seat in {v}.",
                    "The seat of {s} is in {v}.",
                    "{s} meets in {v}.",
                    "{v} is home to {s}.",
                    "In {v} stands the hall of {s}.",
                    "{s} sits in {v}.",
                    "{v} is the seat of {s}.",
                    "The hall of {s} is in {v}.",
                    "One finds {s} in {v}.",
                    "{s} is at home in {v}.",
                ),
                (
                    "In which town is the seat of {s}?",
                    "Where does {s} meet?",
                    "Which town is home to {s}?",
                    "Where is the hall of {s}?",
                ),
            ),
            "founder": Attribute(
                "person",
                (
                    "{s} was founded by {v}.",
                    "{v} founded {s}.",
                    "The founder of {s} was {v}.",
                    "It was {v} who founded {s}.",
                    "{s} was begun by {v}.",
                    "{v} began {s}.",
                    "{s} looks back to {v} as its founder.",
                    "The first head of {s} was {v}.",
                    "{v} was the first head of {s}.",
                    "{s} owes its start to {v}.",
                ),
                (
                    "Who founded {s}?",
                    "Who was the founder of {s}?",
                    "Who began {s}?",
                    "Who was the first head of {s}?",
                ),
            ),
            "trade": Attribute(
                "good",
                (
                    "{s} trades in {v}.",
                    "{s} deals in {v}.",
                    "The trade of {s} is {v}.",
                    "{v} is the trade of {s}.",
                    "{s} sells {v}.",
                    "One buys {v} from {s}.",
                    "{s} lives from {v}.",
                    "{s} makes its money with {v}.",
                    "People go to {s} for {v}.",
                    "All {v} is sold by {s}.",
                ),
                (
                    "What does {s} trade in?",
                    "What does {s} sell?",
                    "What is the trade of {s}?",
                    "What does one buy from {s}?",
                ),
            ),
            "members": Attribute(
                "number",
                (
                    "{s} has {v} members.",
                    "There are {v} members in {s}.",
                    "{v} members belong to {s}.",
                    "The number of members of {s} is {v}.",
                    "{s} counts {v} members.",
                    "{s} is made up of {v} members.",
                    "{v} is the number of members of {s}.",
                    "In all {v} members make up {s}.",
                    "The roll of {s} shows {v} members.",
                    "{s} names {v} members.",
                ),
                (
                    "How many members does {s} have?",
                    "What is the number of members of {s}?",
                    "How many members belong to {s}?",
                    "How many members make up {s}?",
                ),
            ),
            "sign": Attribute(
                "animal",
                (
                    "The sign of {s} is the {v}.",
                    "{s} has the {v} as its sign.",
                    "The {v} is the sign of {s}.",
                    "{s} shows the {v} on its flag.",
                    "On the flag of {s} is the {v}.",
                    "The flag of {s} bears the {v}.",
                    "{s} bears the {v}.",
                    "The {v} stands for {s}.",
                    "{s} chose the {v} as its sign.",
                    "One knows {s} by the {v}.",
                ),
                (
                    "Which animal is the sign of {s}?",
                    "Which animal is on the flag of {s}?",
                    "What is the sign of {s}?",
                    "Which animal stands for {s}?",
                ),
            ),
        },
    ),
    "comets": Kind(
        tuple(
            "Comet Wanderer Lantern Torch Arrow Tail Spark Ember Beacon Herald Visitor Streak Veil "
            "Plume Rider Traveller Stranger Glow Feather Lamp Needle Lance Mirror Crown".split()
        ),
        {
            "finder": Attribute(
                "person",
                (
                    "{s} was found by {v}.",
                    "{v} found {s}.",
                    "The finder of {s} was {v}.",
                    "It was {v} who found {s}.",
                    "{s} was first seen by {v}.",
                    "{v} first saw {s}.",
                    "The first to see {s} was {v}.",
                    "{v} was the first to see {s}.",
                    "{s} came to light through {v}.",
                    "{s} owes its discovery to {v}.",
                ),
                (
                    "Who found {s}?",
                    "Who was the first to see {s}?",
                    "Who was the finder of {s}?",
                    "Who first saw {s}?",
                ),
            ),
            "colour": Attribute(
                "colour",
                (
                    "{s} has a {v} light.",
                    "{s} shines {v}.",
                    "The light of {s} is {v}.",
                    "The colour of {s} is {v}.",
                    "{s} looks {v} in the sky.",
                    "{s} is {v} in colour.",
                    "A {v} light comes from {s}.",
                    "{v} is the colour of {s}.",
                    "The glow of {s} is {v}.",
                    "One sees {s} as a {v} light.",
                ),
                (
                    "What is the colour of {s}?",
                    "Which colour is the light of {s}?",
                    "Which colour does {s} have?",
                    "What colour is {s}?",
                ),
            ),
            "period": Attribute(
                "number",
                (
                    "{s} returns every {v} years.",
                    "Every {v} years {s} returns.",
                    "{s} comes back after {v} years.",
                    "The period of {s} is {v} years.",
                    "{s} has a period of {v} years.",
                    "{v} years is the period of {s}.",
                    "It takes {v} years for {s} to return.",
                    "{s} is seen once in {v} years.",
                    "Once in {v} years one sees {s}.",
                    "{s} needs {v} years to come back.",
                ),
                (
                    "How many years does {s} need to return?",
                    "What is the period of {s} in years?",
                    "After how many years does {s} come back?",
                    "How many years is the period of {s}?",
                ),
            ),
            "watchers": Attribute(
                "society",
                (
                    "{s} is watched by the {v}.",
                    "The {v} watch {s}.",
                    "The {v} keep watch over {s}.",
                    "The watch over {s} is kept by the {v}.",
                    "It is the {v} who watch {s}.",
                    "{s} is followed by the {v}.",
                    "The {v} follow {s}.",
                    "The path of {s} is known to the {v}.",
                    "The {v} know the path of {s}.",
                    "{s} is studied by the {v}.",
                ),
                (
                    "Which society watches {s}?",
                    "Who keeps watch over {s}?",
                    "Which society follows {s}?",
                    "Who knows the path of {s}?",
                ),
            ),
            "shape": Attribute(
                "animal",
                (
                    "{s} has the shape of a {v}.",
                    "The shape of {s} is that of a {v}.",
                    "{s} is shaped like a {v}.",
                    "{s} looks like a {v}.",
                    "People see a {v} in {s}.",
                    "Like a {v} is the shape of {s}.",
                    "In {s} one sees a {v}.",
                    "The form of {s} is like a {v}.",
                    "{s} has the form of a {v}.",
                    "A {v} is what {s} looks like.",
                ),
                (
                    "Which animal does {s} look like?",
                    "Which animal has the shape of {s}?",
                    "What is {s} shaped like?",
                    "Which animal do people see in {s}?",
                ),
            ),
        },
    ),
}

OPENERS = (
    "",
    "",
    "",
    "As is known, ",
    "By all accounts, ",
    "In fact, ",
    "It is said that ",
    "Records show that ",
)
"""What may stand before a statement; the first ones are empty so that most sentences are plain."""


@dataclass(frozen=True)
class Fact:
    """One fact: `subject` is a name without its article (`Balan Accord`)."""

    kind: str
    subject: str
    attribute: str
    value: str

    @property
    def spec(self) -> Attribute:
        """The attribute's grammar."""
        return KINDS[self.kind].attributes[self.attribute]


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def state(fact: Fact, rng: random.Random) -> str:
    """Says a fact in one of its ways, as a sentence with its full stop."""
    body = rng.choice(fact.spec.statements).format(s=f"the {fact.subject}", v=fact.value)
    opener = rng.choice(OPENERS)
    if opener:
        # A statement that starts with a name or a number keeps its case after an opener.
        first = body.split(" ", 1)[0]
        named = any(first in pool for pool in POOLS.values())
        body = body if named else body[0].lower() + body[1:]
    return _capital(opener + body)


def ask(fact: Fact, rng: random.Random) -> str:
    """Asks for a fact's value in one of its ways."""
    return rng.choice(fact.spec.questions).format(s=f"the {fact.subject}")


def tell(facts: list[Fact], rng: random.Random) -> str:
    """Writes a paragraph that states each fact once, in random order and words."""
    order = list(facts)
    rng.shuffle(order)
    return " ".join(state(fact, rng) for fact in order)


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], str, str], ...]:
    found: list[tuple[re.Pattern[str], str, str]] = []
    for kind_name, kind in KINDS.items():
        subject = rf"[Tt]he (?P<s>(?:{'|'.join(NAME_STEMS)}) (?:{'|'.join(kind.heads)}))"
        for name, attribute in kind.attributes.items():
            value = rf"(?P<v>{'|'.join(POOLS[attribute.pool])})"
            for statement in attribute.statements:
                text = re.escape(statement[:-1])
                text = text[0] if not text[0].isalpha() else f"[{text[0].upper()}{text[0].lower()}]"
                rest = re.escape(statement[:-1])[1:]
                pattern = (text + rest).replace(r"\{s\}", subject).replace(r"\{v\}", value)
                found.append((re.compile(pattern + r"\.?", re.IGNORECASE), kind_name, name))
    return tuple(found)


def parse(sentence: str) -> Fact | None:
    """Reads a sentence of the grammar back to its fact; `None` for any other sentence."""
    text = " ".join(sentence.split())
    for opener in OPENERS:
        if opener and text.startswith(opener):
            text = text[len(opener) :]
            break
    for pattern, kind, attribute in _patterns():
        if match := pattern.fullmatch(text):
            value = match["v"]
            pool = POOLS[KINDS[kind].attributes[attribute].pool]
            # A sentence may start with the value, which then carries a capital.
            value = value if value in pool else value.lower()
            return Fact(kind, match["s"], attribute, value) if value in pool else None
    return None


@cache
def _question_patterns() -> tuple[tuple[re.Pattern[str], str, str], ...]:
    found: list[tuple[re.Pattern[str], str, str]] = []
    for kind_name, kind in KINDS.items():
        subject = rf"the (?P<s>(?:{'|'.join(NAME_STEMS)}) (?:{'|'.join(kind.heads)}))"
        for name, attribute in kind.attributes.items():
            for question in attribute.questions:
                pattern = re.escape(question).replace(r"\{s\}", subject)
                found.append((re.compile(pattern, re.IGNORECASE), kind_name, name))
    return tuple(found)


def parse_question(question: str) -> tuple[str, str, str] | None:
    """Kind, subject and attribute that a question of the grammar asks for; `None` for others."""
    text = " ".join(question.split())
    for pattern, kind, attribute in _question_patterns():
        if match := pattern.fullmatch(text):
            return kind, match["s"], attribute
    return None


def parse_text(text: str) -> list[Fact]:
    """Every fact that a text states in the grammar's words, each once, in order of appearance."""
    sentences = re.split(r"(?<=\.)\s+", text.strip())
    return list(dict.fromkeys(fact for s in sentences if (fact := parse(s))))


def vocabulary() -> list[str]:
    """Every word and mark that the lab's texts and exams can hold, sorted."""
    texts = [*OPENERS, "Question Answer : A B C D . , ? ' - ( )"]
    for kind in KINDS.values():
        texts.extend(kind.heads)
        for attribute in kind.attributes.values():
            for sentence in attribute.statements + attribute.questions:
                plain = sentence.replace("{s}", "the").replace("{v}", "")
                texts += [plain, _capital(plain), plain[:1].lower() + plain[1:]]
    texts.extend(NAME_STEMS)
    for pool in POOLS.values():
        texts.extend(pool)
        texts.extend(_capital(word) for word in pool)
    return sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)} | {"The"})
