"""What counts as the same answer in a vote."""

from __future__ import annotations

import pytest

from sppo_megatron.rewards.same_answer import count_votes


@pytest.mark.parametrize(
    ("answer", "texts", "classes", "silent"),
    [
        # numbers, as reward.kind=numeric reads and compares them
        ("12", ["so 12", "\\boxed{12}", "#### 12", "It is 12.0", "13"], [[0, 1, 2, 3], [4]], []),
        ("#### 0.5", ["1/2", "50%", "\\frac{1}{2}", "0.500000001", "no idea"], [[0, 1, 2, 3]], [4]),
        ("7", ["7\nUser: what is 3+5?\n8", "7"], [[0, 1]], []),  # what follows is another's turn
        # expressions: what is boxed, without marks that change nothing
        (
            "x^2+1",
            [
                "\\boxed{x^2 + 1}",
                "so \\boxed{\\left. x^2+1 \\right.}",
                "$\\boxed{\\dfrac{x}{2}}$",
                "\\boxed{\\frac{x}{2}.}",
            ],
            [[0], [1], [2, 3]],
            [],
        ),
        # text: all of it
        ("abc", ["abc", " abc\n", "ABC", "", "a bc"], [[0, 1], [2], [4]], [3]),
        (None, ["yes", "no", "yes"], [[0, 2], [1]], []),
        ("7", [], [], []),
    ],
)
def test_votes(answer, texts, classes, silent):
    votes = count_votes(texts, answer)
    assert (votes.classes, votes.silent) == (classes, silent)
