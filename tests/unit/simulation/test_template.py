"""Templates: what is filled in, what is left alone, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bbpwf.errors import InvalidParameter
from bbpwf.workflow.request import HeadRequest
from tasks.simulation.template import BUILT_IN, BUILT_IN_VALUES, Template, built_in, load

RUN = '"run": {"tstop": 10, "dt": 0.1, "random_seed": 1}'


def template(text: str, **values: Any) -> Template:
    return Template(text, "my.tmpl", values)


def request(**more: Any) -> HeadRequest:
    return HeadRequest(run_id="r1", module="tasks.simulation", task="SimulationCampaign", **more)


def test_numbers_and_text_are_filled_in_as_json() -> None:
    made = template(f'{{"a": $a, "b": "${{b}}c", "yes": $yes, {RUN}}}').render({"a": 1e-3, "b": 'x"\\y', "yes": True})
    config = json.loads(made.text)
    assert (config["a"], config["b"], config["yes"]) == (0.001, 'x"\\yc', True)


def test_the_variables_of_the_manifest_are_left_to_sonata() -> None:
    text = (
        f'{{"manifest": {{"$OUTPUT_DIR": "./reporting"}}, {RUN}, "price": "$$5",'
        ' "output": {"output_dir": "$OUTPUT_DIR", "spikes_file": "s.h5"}}'
    )
    one = template(text)
    assert one.placeholders == []
    made = one.render({})
    assert json.loads(made.text)["manifest"] == {"$OUTPUT_DIR": "./reporting"}
    assert json.loads(made.text)["price"] == "$5"
    assert made.spikes == "reporting/s.h5"


def test_templates_of_the_predecessor_with_escaped_dollars_work() -> None:
    text = '{"manifest": {"\\$OUT": "./o"}, "output": {"output_dir": "\\$OUT"}, ' + RUN + "}"
    assert template(text).render({}).spikes == "o/out.h5"


def test_reports_that_will_be_written_are_known() -> None:
    reports = '{"soma": {}, "axon": {"file_name": "a"}, "off": {"enabled": false}}'
    made = template(f'{{{RUN}, "reports": {reports}, "output": {{"output_dir": "./out/"}}}}').render({})
    assert made.reports == ("out/soma.h5", "out/a.h5")
    assert made.spikes == "out/out.h5"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'{{"a": $missing, {RUN}}}', r"the placeholder \$missing of my.tmpl has no value"),
        ("{oops", "my.tmpl is no JSON once its placeholders are filled"),
        (f'{{"a": $text, {RUN}}}', "is no JSON"),
        ("[1]", "is no SONATA simulation config: it has no `run`"),
        ('{"run": {"tstop": 1}}', "`run` lacks dt, random_seed"),
        (f'{{{RUN}, "output": {{"output_dir": "/tmp/all"}}}}', "output_dir must lie in the folder of the simulation"),
        (f'{{{RUN}, "output": {{"output_dir": "a/../../b"}}}}', "output_dir must lie in the folder"),
        (f'{{{RUN}, "reports": [1]}}', "`reports` must be an object"),
        (f'{{{RUN}, "output": "out"}}', "`output` must be an object"),
    ],
)
def test_a_template_that_makes_no_config_is_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidParameter, match=said):
        template(text).render({"text": "word"})


def test_the_built_in_template_needs_only_what_every_campaign_gives() -> None:
    one = built_in()
    assert one.text == BUILT_IN
    made = one.render({"circuit_config": "/c.json", "random_seed": 3})
    config = json.loads(made.text)
    assert config["network"] == "/c.json"
    assert config["inputs"]["stimulus"]["amp_start"] == BUILT_IN_VALUES["stimulus_amplitude"]
    assert made.spikes == "output/out.h5"
    assert made.reports == ("output/soma.h5",)


def test_a_template_is_found_among_the_attachments(tmp_path: Path) -> None:
    attachments = tmp_path / "attachments"
    attachments.mkdir()
    (attachments / "my.tmpl").write_text("{}")
    (tmp_path / "secret").write_text("{}")
    one = load("my.tmpl", request(attachments=str(attachments)))
    assert (one.text, one.where) == ("{}", "the template 'my.tmpl'")
    for name in ("../secret", str(tmp_path / "secret")):
        with pytest.raises(InvalidParameter, match="is not among the attachments"):
            load(name, request(attachments=str(attachments)))
    with pytest.raises(InvalidParameter, match=r"'other.tmpl' cannot be read: No such file"):
        load("other.tmpl", request(attachments=str(attachments)))


def test_without_attachments_a_template_lies_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "my.tmpl").write_text("{ }")
    assert load("my.tmpl", request(config=str(tmp_path / "my.cfg"))).text == "{ }"


def test_a_template_must_be_text_of_a_sensible_size(tmp_path: Path) -> None:
    (tmp_path / "huge").write_bytes(b" " * (1024 * 1024 + 1))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, said in (("huge", "larger than"), ("binary", "not UTF-8")):
        with pytest.raises(InvalidParameter, match=said):
            load(name, request(attachments=str(tmp_path)))
