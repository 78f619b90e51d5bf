"""HTML pages: data always appears as text."""

import html.parser

import pytest

from agejax.reporting import audit_page, page
from agejax.reporting.plots import Chart

HOSTILE = """<script>alert("x")</script> & '"><img src=x onerror=y>"""


class Seen(html.parser.HTMLParser):
    """The elements, their attributes and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += [(name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text.append(data)


# A cell's class depends on how long its text is.
PLAIN = "plain and as long as the hostile one"

PLACES = {
    "title": lambda text: page.page(text, "", []),
    "heading": lambda text: page.page("a", "", [page.Section(text, "b")]),
    "subheading": page.subheading,
    "paragraph": page.paragraph,
    "name of a fact": lambda text: page.facts({text: 3}),
    "fact": lambda text: page.facts({"n": text}),
    "meaning of a colour": lambda text: page.legend({"#ffffff": text}),
    "name of a card": lambda text: page.cards({text: 3}),
    "figure of a card": lambda text: page.cards({"n": text}),
    "head of a table": lambda text: page.table(("a", text, "b"), [(1, 2, 3)]),
    "last head of a table": lambda text: page.table(("a", text), [(1, 2)]),
    "cell of a table": lambda text: page.table(("a", "b"), [(1, text)]),
    "name of a list": lambda text: page.listing(text, ("a", "b"), [(1, 2)]),
    "head of a list": lambda text: page.listing("of", ("a", text), [(1, 2)]),
    "cell of a list": lambda text: page.listing("of", ("a", "b"), [(text, 2)]),
    "caption": lambda text: page.figures([Chart(b"", text, "")]),
    "split of an audit": lambda text: (
        audit_page._leakage({text: {"splits": {}, "pairs": []}}, []).body
    ),
    "alternative text": lambda text: page.figures([Chart(b"", "", text)]),
}


@pytest.mark.parametrize("place", PLACES)
def test_text_in_every_element_stays_text(place):
    plain, hostile = (Seen(PLACES[place](text)) for text in (PLAIN, HOSTILE))
    assert hostile.elements == plain.elements
    assert [name for name, _ in hostile.attributes] == [name for name, _ in plain.attributes]
    # And it reads as it was written.
    texts = ["".join(hostile.text), *(value for _, value in hostile.attributes if value)]
    assert any(HOSTILE in text for text in texts)
