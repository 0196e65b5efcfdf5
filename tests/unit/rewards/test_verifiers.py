"""The built-in rewards by hand-worked cases."""

import subprocess
import sys

import pytest

from sppo_megatron.rewards.verifiers import VERIFIERS, Score, character_share, exact_match, math_verify, numeric


def test_exact_match_ignores_white_space_around():
    assert exact_match("p", " 1284\n", "1284") == exact_match("p", "1284", " 1284\n") == Score(1.0, True)
    assert exact_match("p", "12 84", "1284") == Score(0.0, False)
    assert exact_match("p", "", "1284") == Score(0.0, False)


def test_numeric():
    assert numeric("p", "3 + 4 = 7, so the answer is 7.", "#### 7") == Score(1.0, True)
    assert numeric("p", "7 or 8", "7") == Score(0.0, False)
    assert numeric("p", "no idea", "7") == Score(0.0, False)
    with pytest.raises(ValueError, match="holds no number"):
        numeric("p", "7", "seven")


@pytest.mark.parametrize(
    ("response", "answer", "share"),
    [
        ("1284", "1284", 1.0),
        ("1283", "1284", 0.75),
        ("12", "1284", 0.5),
        ("12849999", "1284", 0.5),  # extra characters cost
        ("x1284", "1284", 0.0),  # shifted by one
        ("", "1284", 0.0),
        ("", "", 1.0),
        (" 1284\n", "1284", 1.0),
        ("1284", " 1284\n", 1.0),
    ],
)
def test_character_share(response, answer, share):
    assert character_share("p", response, answer) == Score(share, share == 1.0)


@pytest.mark.parametrize(
    ("response", "answer", "correct"),
    [
        (r"Thus $\frac{1}{2}$.", "0.5", True),
        (r"\boxed{(x+1)^2}", "$x^2+2x+1$", True),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", True),
        (r"\boxed{3}", "4", False),
        ("I don't know", "4", False),
    ],
)
def test_math_verify(response, answer, correct):
    pytest.importorskip("math_verify")
    assert math_verify("p", response, answer) == Score(float(correct), correct)


def test_math_verify_without_the_package_names_the_extra():
    code = (
        "import sys; sys.modules['math_verify'] = None\n"
        "from sppo_megatron.rewards.verifiers import check_math_verify; check_math_verify()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert 'pip install "sppo-megatron[math]"' in result.stderr


@pytest.mark.parametrize("kind", sorted(VERIFIERS))
def test_a_missing_answer_is_an_error(kind):
    if kind == "math_verify":
        pytest.importorskip("math_verify")
    with pytest.raises(ValueError, match="answer_key"):
        VERIFIERS[kind]("p", "r", None)
