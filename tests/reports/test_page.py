"""The parts that all pages of results share."""

import jinja2


def test_names_between_backticks_are_code_and_the_rest_is_escaped():
    environment = jinja2.Environment(loader=jinja2.PackageLoader("ray_deltastn.reports"), autoescape=True)
    coded = environment.get_template("parts.html").module.coded
    assert coded("raise `a.b` or `c`, if 1 < 2") == "raise <code>a.b</code> or <code>c</code>, if 1 &lt; 2"
    assert coded("nothing") == "nothing"
