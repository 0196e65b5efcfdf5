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


PAIRS = [
    ("The answer is 1,234.", "1234", 1),
    ("1 234", "1234", 1),
    ("1\u202f234", "1234", 1),
    ("1\u00a0234 EUR", "1234", 1),
    ("1e3", "1000", 1),
    ("1E+3", "1000", 1),
    ("10^3", "1000", 1),
    ("2^{10}", "1024", 1),
    ("\\boxed{2^{10}}", "1024", 1),
    ("\\boxed{2^{10}}", "10", 0),
    ("$\\frac12$", "0.5", 1),
    ("\\boxed{\\frac{1}{2}}", "1/2", 1),
    ("-\\frac{1}{2}", "-0.5", 1),
    ("\\boxed{\\dfrac{-1}{2}}", "-1/2", 1),
    ("\\boxed{-\\frac{1}{2}}", "-0.5", 1),
    ("50%", "0.5", 1),
    ("50\\%", "50", 1),
    ("\\boxed{42}", "42", 1),
    ("\\boxed{42 \\text{ cm}^2}", "42", 1),
    ("\\boxed{42\\text{ m/s}^2}", "42", 1),
    ("\\boxed{42\\text{ m/s}^2}", "2", 0),
    ("\\boxed{x = 5}", "5", 1),
    ("\\boxed{10{,}000}", "10000", 1),
    ("\\boxed{10\\,000}", "10000", 1),
    ("\\fbox{7}", "7", 1),
    ("\\boxed 7", "7", 1),
    ("#### 72", "#### 72", 1),
    ("<<48/2=24>>24 clips.\n#### 72", "... #### 72", 1),
    ("#### 42 apples\nIt took 3 steps.", "42", 1),
    ("The answer is 72. Check: 70 + 2 = 72", "72", 1),
    ("\u22125", "-5", 1),
    ("\u20135", "-5", 1),
    ("(-5)", "-5", 1),
    ("x=-5", "-5", 1),
    ("2/3", "0.6667", 0),
    ("0.667", "2/3", 0),
    ("3 1/2", "3.5", 1),
    ("3\\frac12", "3.5", 1),
    ("\uff14\uff12", "42", 1),
    ("\u0664\u0662", "42", 1),
    ("3\\pi", "3", 0),
    ("infinity", "5", 0),
    ("1/0", "5", 0),
    ("4.0", "4", 1),
    ("4.00000001", "4", 1),
    ("4.1", "4", 0),
    ("$18.00", "18", 1),
    ("\u20ac18", "18", 1),
    ("\u00a318.50", "18.5", 1),
    ("**42**", "42", 1),
    ("`42`", "42", 1),
    ("<answer>42</answer>", "42", 1),
    ("42</s>", "42", 1),
    ("42 km\u00b2", "42", 1),
    ("H2O has 3 atoms", "3", 1),
    ("\\boxed{3\\cdot 10^8}", "300000000", 1),
    ("3 x 10^8", "300000000", 1),
    ("\\boxed{5x}", "5", 0),
    ("\\boxed{\\sqrt{5}}", "5", 0),
    ("\\boxed{(3,4)}", "4", 0),
    ("\\boxed{18 or 19}", "19", 0),
    ("\\boxed{18 or 19}", "18", 0),
    ("\\boxed{5!}", "5", 0),
    ("\\boxed{3\\sqrt{2}}", "2", 0),
    ("\\boxed{x^2+1}", "1", 0),
    ("\\boxed{10:45}", "45", 0),
    ("\\boxed{7}, not 8", "7", 1),
    ("\\boxed{\\$5}", "5", 1),
    ("\\boxed{90^\\circ}", "90", 1),
    ("\\boxed{1{,}234{,}567}", "1234567", 1),
    ("\\boxed{1.5e3}", "1500", 1),
    ("\\boxed{3 \\frac{1}{2}}", "3.5", 1),
    ("\\boxed{(5)}", "5", 1),
    ("\\boxed{5\\%}", "5", 1),
    ("\\boxed{0.5}", "50%", 1),
]


@pytest.mark.parametrize(("response", "answer", "is_right"), PAIRS)
def test_numbers_as_people_and_models_write_them(response, answer, is_right):
    assert numeric("p", response, answer).reward == is_right


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
