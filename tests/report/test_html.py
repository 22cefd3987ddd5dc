from __future__ import annotations

from report.html import Html, join, tag


def test_text_and_attributes_are_escaped_and_elements_are_not():
    assert tag("p", "a<b", tag("b", "&"), title='"x"') == '<p title="&quot;x&quot;">a&lt;b<b>&amp;</b></p>'
    assert join(["<", Html("<hr>")]) == "&lt;<hr>"


def test_attributes_that_say_yes_no_or_nothing():
    assert tag("option", selected=True, hidden=False, title=None, class_="a", data_task=0) == (
        '<option selected class="a" data-task="0"></option>'
    )
    assert tag("img", src="x") == '<img src="x">'
