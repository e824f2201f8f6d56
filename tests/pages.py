"""What a page would load, read from its HTML."""

from html.parser import HTMLParser

LOADS = {"src", "srcset", "poster", "data", "background", "href"}


class _Attributes(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, name, value or "") for name, value in attrs if name in LOADS]


def addresses(html):
    """Every (tag, attribute, address) of a page; text inside scripts and styles is no tag."""
    parser = _Attributes()
    parser.feed(html)
    return parser.found
