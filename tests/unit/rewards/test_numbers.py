"""The number a text ends on, and when two numbers are the same."""

import os
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_megatron.rewards.numbers import Number, last_number, same_number
from sppo_megatron.rewards.verifiers import numeric

many = settings(
    max_examples=int(os.environ.get("SPPO_FUZZ_EXAMPLES", "100")),
    deadline=None,
    derandomize="SPPO_FUZZ_EXAMPLES" not in os.environ,
)
pieces = st.sampled_from([*list("0123456789.,-+/^{}()$%= \n"), "\\boxed{", "\\frac", "####", "\\text{", "Human:", "Q:"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 42.", 42),
        ("first 3, then -3.5", Fraction(-7, 2)),
        (".5", Fraction(1, 2)),
        ("so it costs $1,234,567.50!", Fraction(246913500, 200)),
        ("1{,}234", 1234),
        ("-$5", -5),
        ("−7", -7),
        ("1.5e3", 1500),
        (r"2 \times 10^{5}", 200000),
        ("3/4", Fraction(3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac12", Fraction(-1, 2)),
        (r"1\frac{3}{4}", Fraction(7, 4)),
        ("rows 3-5", 5),
        ("答案是42", 42),
        ("so...42", 42),
        (r"\boxed{\frac{1}{2}} as shown in step 7", Fraction(1, 2)),
        (r"\boxed{3} or rather \boxed{4}, see page 9", 4),
        (r"\boxed{x} then 9", 9),
        (r"unclosed \boxed{5", 5),
        ("1,2345", 2345),
        ("it is 42, not 7/0", 42),  # what is no number is passed over
    ],
)
def test_reads_what_people_and_models_write(text, value):
    assert last_number(text) == Number(Fraction(value), percent=False)


@pytest.mark.parametrize("text", ["", "none here", "H2O", "7/0", "1e999999999", "9" * 5000])
def test_no_number(text):
    assert last_number(text) is None


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("42", "42.0", True),
        ("1/3", "0.3333333", True),
        ("0.1", "1/10", True),
        ("0.3334", "1/3", False),
        ("1000000", "1000001", False),  # relative 1e-6, but integers
        ("1000000", "1000000.5", True),
        ("50%", "50", True),
        ("50%", "0.5", True),
        ("50%", r"50\%", True),
        ("50%", "0.5%", False),
        ("0", "-0.0", True),
        ("0", "1e-9", False),
        ("5", "-5", False),
    ],
)
def test_same_number(a, b, same):
    first, second = last_number(a), last_number(b)
    assert same_number(first, second) is same
    assert same_number(second, first) is same


@many
@given(st.integers(), st.text(alphabet="abc .,\n", max_size=10))
def test_any_integer_is_found_behind_any_words(number, words):
    assert last_number(f"{words} is {number:,}.").value == number


@many
@given(st.fractions(max_denominator=10**6))
def test_any_fraction_is_exact(number):
    assert last_number(f"it is {number.numerator}/{number.denominator}").value == number


@many
@given(st.text() | st.lists(pieces, max_size=30).map("".join))
def test_never_raises(text):
    last_number(text)
    numeric("p", text, "42")


@pytest.mark.parametrize("piece", ["1", " ", "1,", "\\frac{", "1/", "\\boxed{", "1e", "-", "5 ", ".", "5*10^"])
def test_long_texts_take_linear_time(piece):
    begin = time.process_time()
    last_number(piece * (100_000 // len(piece)))
    assert time.process_time() - begin < 2.0
