"""Which name a prompt is probably about, where nobody says."""

import pytest

from pipeline.domain.language.guessing import guessed_subject
from pipeline.domain.language.names import last_mention


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("The head coach of FC Barcelona is", "FC Barcelona"),
        ("Who is the head coach of FC Barcelona?", "FC Barcelona"),
        ("The capital of Australia is", "Australia"),
        ("Apple's chief executive officer is", "Apple"),
        ("The current Prime Minister of Japan is", "Japan"),
        ("The president of Brazil in January 2025 was", "Brazil"),
        ("In March, the leader of the Catholic Church was", "Catholic Church"),
        ("столица Австралии —", "Австралии"),
        ("It moved. The mayor of St. Louis is", "St. Louis"),
        ("Die Hauptstadt von Frankreich ist", "Frankreich"),
        ("AT&T is based in", "AT&T"),
        ("the river is long", None),
        ("The answer is", None),
        ("法国的首都是", None),
        ("", None),
    ],
)
def test_the_last_run_of_capitalized_words_is_guessed(text: str, subject: str | None) -> None:
    assert guessed_subject(text) == subject
    assert subject is None or last_mention(text, subject) is not None
