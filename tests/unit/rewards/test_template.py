from __future__ import annotations

import pytest

from sppo_megatron.rewards.template import JUDGE_TEMPLATE, PAIRWISE_TEMPLATE, load_template, render


def test_texts_are_filled_in_once():
    template = 'Q {prompt} A {first} B {second} {"json": {first}}'
    filled = render(template, "{first}", "{second}\\1", "{prompt}{0}")
    assert filled == 'Q {first} A {second}\\1 B {prompt}{0} {"json": {second}\\1}'


@pytest.mark.parametrize("template", [JUDGE_TEMPLATE, PAIRWISE_TEMPLATE])
def test_the_built_in_ones_show_everything_in_order(template):
    filled = render(template, "PROMPT", "FIRST", "SECOND")
    assert filled.index("PROMPT") < filled.index("FIRST") < filled.index("SECOND")
    assert "{" not in filled
    assert load_template(None, template) == template


def test_a_file(tmp_path):
    path = tmp_path / "template.txt"
    path.write_text("{prompt} é {first} {second}", encoding="utf-8")
    assert load_template(str(path), "") == "{prompt} é {first} {second}"
    path.write_text("{prompt} {first}")
    with pytest.raises(ValueError, match=r"lacks \{second\}"):
        load_template(str(path), "")
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="can't be read"):
        load_template(str(path), "")
    with pytest.raises(ValueError, match="nowhere"):
        load_template(str(tmp_path / "nowhere"), "")
