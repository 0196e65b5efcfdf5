"""The built-in rewards by hand-worked cases."""

import subprocess
import sys

import pytest

from sppo_megatron.rewards.verifiers import Score, character_share, exact_match, math_verify, numeric


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
    "answer",
    [
        "\\sqrt{2}",
        "(3, 2)",
        "10:45",
        "3x+1",
        "\\frac{\\sqrt{3}}{2}",
        "\\pi",
        "5x",
        "18 or 19",
        "2024-01-05",
        "A",
        "",
        "5!",
    ],
)
def test_an_answer_that_is_no_number_as_a_whole_is_refused(answer):
    with pytest.raises(ValueError, match="math_verify compares expressions"):
        numeric("p", "2", answer)


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


@pytest.mark.parametrize(
    ("response", "answer", "correct"),
    [
        (r"\boxed{3\sqrt{2}}", r"3\sqrt{2}", True),
        (r"\boxed{3}", r"3\sqrt{2}", False),
        (r"\boxed{\frac{\pi}{2}}", r"\frac{\pi}{2}", True),
        (r"\boxed{2}", r"\frac{\pi}{2}", False),
        (r"\boxed{\sqrt{18}}", r"3\sqrt{2}", True),
        (r"\boxed{3\sqrt{2}}", r"$3\sqrt{2}$", True),
        (r"\boxed{3\sqrt{2}}", r"\boxed{3\sqrt{2}}", True),
        (r"\boxed{(1, 2)}", "(1, 2)", True),
        (r"\boxed{(3, 2)}", "(1, 2)", False),
    ],
)
def test_math_verify_reads_a_bare_answer_as_a_whole(response, answer, correct):
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


@pytest.mark.parametrize("verifier", [exact_match, numeric, character_share, math_verify])
def test_a_missing_answer_is_an_error(verifier):
    if verifier is math_verify:
        pytest.importorskip("math_verify")
    with pytest.raises(ValueError, match="answer_key"):
        verifier("p", "r", None)
