"""What is printed is what was computed."""

from __future__ import annotations

from sppo_planner.arithmetic import Part, term


def test_a_product_and_its_text():
    found = term("norm inputs", tokens=8192, hidden=4096, bytes=2)
    assert found.value == 8192 * 4096 * 2 and isinstance(found.value, int)
    assert str(found) == "8,192 tokens × 4,096 hidden × 2 bytes"


def test_factors_come_first_and_a_divisor_of_one_is_left_out():
    found = term("x", tokens=10).over(tp=1, pp=4).times(in_flight=3)
    assert found.value == 7.5
    assert str(found) == "3 in flight × 10 tokens ÷ 4 pp"


def test_large_and_broken_numbers_are_short():
    assert str(term("x", share=0.45, FLOP=9.89e14)) == "0.45 share × 9.89e+14 FLOP"


def test_a_part_is_the_sum():
    assert Part("sum", (term("a", bytes=3), term("b", bytes=4).over(ranks=2))).value == 5
    assert Part("nothing", ()).value == 0
