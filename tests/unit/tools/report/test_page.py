"""The page as a file: data that can't leave its place, elements that the policy names, colours that can be read."""

import base64
import hashlib
import html.parser
import json
import re
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_report.page import build_page, embedded_json


class Elements(html.parser.HTMLParser):
    """(tag, attributes) in order, and the text of each script and style."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self._open = [], {}, None
        self.feed(page.decode())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._open = (tag, dict(attributes).get("id")) if tag in ("script", "style") else None
        if self._open:
            self.texts[self._open] = ""

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open:
            self.texts[self._open] += data


HOSTILE = '</script><img src=x onerror="alert(1)"><!--<script>{{style}} \\u003c \ud800 \u2028'


@pytest.mark.parametrize("text", [HOSTILE, "</SCRIPT >", "<!--<script>", "{{data}}{{script}}", "日本 🎉"])
def test_text_comes_back_as_it_was_and_adds_no_element(text):
    data = {"runs": [{"name": text, text: [text]}]}
    plain, found = Elements(build_page({})), Elements(build_page(data))
    assert json.loads(found.texts["script", "data"]) == data
    assert found.tags == plain.tags


@settings(max_examples=40, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_embedded_json_is_json_and_has_no_markup(data):
    text = embedded_json(data)
    assert json.loads(text) == data
    assert "<" not in text


def test_numbers_that_json_does_not_have_are_refused():
    with pytest.raises(ValueError, match="JSON"):
        embedded_json([float("nan")])


def test_the_policy_allows_our_script_and_style_alone():
    found = Elements(build_page({}))
    (policy,) = [a["content"] for tag, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for name in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(found.texts[name, None].encode()).digest()).decode()
        assert rules[f"{name}-src"] == f"'sha256-{digest}'"
    for _, attributes in found.tags:
        assert not {name for name in attributes if name.startswith("on") or name in ("src", "style")}


def schemes():
    """{scheme: {variable: (r, g, b)}} of the style sheet."""
    style = (resources.files("sppo_report") / "report.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    assert len(blocks) == 2
    colours = [dict(re.findall(r"--([\w-]+): #([0-9a-f]{6})", block)) for block in blocks]
    return {
        name: {key: tuple(bytes.fromhex(value)) for key, value in (colours[0] | own).items()}
        for name, own in zip(("light", "dark"), colours, strict=True)
    }


def contrast(a, b):
    """WCAG 2.2: (L1 + 0.05)/(L2 + 0.05) of relative luminances."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_read(scheme):
    colour = schemes()[scheme]
    for name in ("text", "muted", "link", "alarm"):
        assert contrast(colour[name], colour["card"]) >= 4.5 and contrast(colour[name], colour["page"]) >= 4.5
    for name in ("alarm", "past"):
        assert contrast(colour[name], colour[f"{name}-soft"]) >= 4.5
    for place in range(6):
        assert contrast(colour[f"series-{place}"], colour["card"]) >= 3
    for name in ("less", "more", "unlikely"):  # behind the text of a token, at most 60% of it
        painted = tuple(0.6 * c + 0.4 * page for c, page in zip(colour[name], colour["page"], strict=True))
        assert contrast(colour["text"], painted) >= 4.5, name
