"""The HTML page of a run: what it says, what it leaves out, and that it needs nothing beside it."""

import base64
import io
import json
import os
import shlex
from html.parser import HTMLParser

import finished_runs
import pytest
from PIL import Image
from protocol_runs import ALL, arguments, finished, result_of, tiny

from cxrjax import cli, config, main, verdict
from cxrjax.report import __main__ as command
from cxrjax.report import elements, performance

VOID = {"meta", "img"}
NONE = {"leaks": {"pairs": {}, "patients": {}}, "confounding": {"table": {}, "cramers_v": 0}}
EVIL = '<script>alert("1")</script>&\'" onload=x'


class Page(HTMLParser):
    """A page taken apart; fails where tags do not close in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.attributes = [], [], []
        self.words, self.tables, self.codes = [], {}, []
        self.feed(text)
        self.close()
        assert not self.open, self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows, self.caption = [], ""
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "code":
            self.codes.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            assert self.caption not in self.tables
            self.tables[self.caption] = self.rows

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if "caption" in self.open:
            self.caption += data
        elif "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        if "code" in self.open:
            self.codes[-1] += data

    def table(self, caption):
        (rows,) = [rows for name, rows in self.tables.items() if name.startswith(caption)]
        return rows


def report(folder, *more):
    assert command.main(["--workdir", str(folder), *map(str, more)]) == 0
    return (folder / "report.html").read_text(encoding="utf-8")


def shown(entry, n=True):
    count = f" n = {entry['n']}" if n else ""
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]{count}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished tiny run on phantoms, tested, with the shortcut score."""
    return finished(tiny(eval__shortcuts=True, **ALL), tmp_path_factory, "a run")


@pytest.fixture(scope="module")
def of_run(run):
    assert cli.main(["report", "--workdir", str(run)]) == 0
    return (run / "report.html").read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_is_sound_html(of_run):
    parsed = Page(of_run)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(parsed.tags)
    loads = [value for _, name, value in parsed.attributes if name in ("src", "href", "srcset")]
    assert loads and all(value.startswith("data:image/png;base64,") for value in loads)
    for value in loads:
        with Image.open(io.BytesIO(base64.b64decode(value.partition(",")[2]))) as image:
            assert image.format == "PNG"
    assert "http://" not in of_run and "https://" not in of_run
    assert "url(" not in of_run and "@import" not in of_run
    assert ("meta", "content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in (
        parsed.attributes
    )
    alts = [value for tag, name, value in parsed.attributes if (tag, name) == ("img", "alt")]
    assert len(alts) == parsed.tags.count("img") == len(loads) and all(alts)
    assert "prefers-color-scheme: dark" in of_run and "@media print" in of_run


def test_the_figures_are_those_of_the_result(run, of_run):
    result, parsed = result_of(run), Page(of_run)
    head, *rows = parsed.table("Value, 95 % interval")
    assert head == ["", "validation", "test"] and len(rows) == 8
    for (key, (name, what)), row in zip(performance._METRICS.items(), rows, strict=True):
        told = [shown(result[split][key]) for split in ("validation", "test")]
        assert row == [f"{name} {what}", *told]
    for split in ("validation", "test"):
        part = result[split]
        keys = ("recall", "specificity", "precision", "f1", "auroc")
        for name, row in zip(part["classes"], parsed.tables[f"{split} split"][1:], strict=True):
            of = part["per_class"][name]
            told = [
                "undefined" if of[key]["value"] is None else shown(of[key], n=False) for key in keys
            ]
            assert row == [name, str(of["support"]), *told]
        counts = parsed.table(f"{split} split: rows are true")
        for name, row, cells in zip(
            part["classes"], part["confusion_matrix"], counts[1:], strict=True
        ):
            told = [f"{n} {100 * n / sum(row):.0f}\N{NO-BREAK SPACE}%" for n in row]
            assert cells == [name, *told, str(sum(row))]


def test_verdict_audit_and_calibration_are_those_of_the_files(run, of_run):
    result, parsed = result_of(run), Page(of_run)
    assert verdict.line(result) in parsed.text
    assert parsed.text.index(verdict.line(result)) < parsed.text.index("How good")
    assert all(line in parsed.text for line in result["audit"]["summary"])
    assert parsed.table("Leaks")[1] == ["pairs of near-duplicates", "0", "0", "0"]
    views = result["audit"]["shortcuts"]["views"]
    assert parsed.table("The network on test images")[1:] == [
        [name, shown(views[view]["accuracy"]), shown(views[view]["auroc"])]
        for name, view in (("as they are", "intact"), ("without lungs", "without_lungs"))
    ]
    fitted = json.loads((run / "calibration.json").read_text())
    assert parsed.table("Test split, lower is better")[3] == [
        "calibration error (ECE)",
        shown(fitted["before"]["ece"]),
        shown(fitted["after"]["ece"]),
    ]
    assert parsed.table("Abstention")[1][1] == shown(fitted["abstention"]["test"]["coverage"])
    first = parsed.table("Sets on the test split")[1]
    assert first[:2] == ["all", shown(fitted["conformal"]["test"]["all"]["coverage"])]
    cut = fitted["operating_points"]["clear"]
    assert parsed.table("Cuts on")[1][1:4] == [
        "0.95",
        f"{cut['threshold']:.3f}",
        shown(cut["sensitivity"]),
    ]


def test_the_protocol_is_told(run, of_run):
    result, parsed = result_of(run), Page(of_run)
    assert [row[:2] for row in parsed.table("Splits")[1:]] == [
        [split, str(n)] for split, n in result["n"].items()
    ]
    settings = config.fields(config.load(str(run / "config.json")))
    usual = config.fields(config.default())
    assert parsed.table("Configuration")[1:] == [
        [field, str(value), str(usual[field])]
        for field, value in settings.items()
        if value != usual[field]
    ]
    assert (run / "config.json").read_text().strip() in "".join(parsed.words)
    for told in (result["split_digest"], result["device"], result["versions"]["jax"]):
        assert told in parsed.text
    assert f"{result['seconds']} seconds" in parsed.text
    assert "Test split read 1 time(s) so far" in parsed.text
    assert parsed.text.endswith("nothing here may be used to diagnose anybody.")


def test_the_command_that_it_names_redoes_the_run(run, of_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (words,) = [code for code in Page(of_run).codes if "--config " in code and ".main" in code]
    words = shlex.split(words)
    assert words[:3] == ["python", "-m", "cxrjax.main"] and not os.path.exists(words[-1])
    assert main.main([*words[3:-1], str(tmp_path / "again")]) == 0
    assert result_of(tmp_path / "again")["test"] == result_of(run)["test"]


def test_names_from_outside_are_escaped(tmp_path):
    classes = (EVIL, "Normal", "b\u202ex")
    folder = finished_runs.make(tmp_path / "<b>run<b>", classes=classes, task=EVIL, device=EVIL)
    rows = (folder / "predictions.csv").read_bytes()
    (folder / "predictions.csv").write_bytes(rows.replace(b"image-", b"<img src=x>\xff"))
    text = report(folder)
    parsed = Page(text)
    assert "script" not in parsed.tags and "b" not in parsed.tags and "\u202e" not in text
    assert not [a for a in parsed.attributes if a[1] == "onload" or a[2] == "x"]
    assert parsed.tables["test split"][1][0] == EVIL
    assert "<img src=x>\\udcff" in parsed.text and "<b>run<b>" in parsed.text
    assert "b\N{REPLACEMENT CHARACTER}x" in parsed.text


def test_text_is_escaped_once_and_html_left_alone():
    assert elements.text("<&\"'\0") == "&lt;&amp;&quot;&#x27;\N{REPLACEMENT CHARACTER}"
    inner = elements.tag("b", "<", title='"')
    assert inner == '<b title="&quot;">&lt;</b>' == elements.text(inner)
    assert elements.join([inner, "<"], ",") == f"{inner},&lt;"


def test_an_untested_run_says_how_it_is_tested(tmp_path):
    folder = tmp_path / "untested"
    assert main.main(arguments(folder, eval__test=False, data__phantom__seed=7, **ALL)) == 0
    parsed = Page(report(folder))
    assert "NOT TESTED" in parsed.text and "they flatter" in parsed.text
    assert parsed.text.count("The test split was not read; once all else is decided") == 4
    assert parsed.table("Value, 95 % interval")[0] == ["", "validation"]
    commands = {tuple(shlex.split(code)[2:]) for code in parsed.codes}
    where = str(folder)
    assert ("cxrjax.main", "--workdir", where, "--config.eval.test=True") in commands
    data = ("--config", f"{where}/config.json", "--out", f"{where}/audit")
    assert ("cxrjax.audit", *data) in commands
    assert not any(name.startswith(("test split", "Abstention")) for name in parsed.tables)
    assert "read 0 time(s) so far, not by this run" in parsed.text
    assert parsed.tags.count("img") == 1  # the learning curves


def test_what_is_absent_is_left_out_with_its_command(tmp_path):
    folder = finished_runs.make(tmp_path / "bare")
    (folder / "calibration.json").unlink()
    (folder / "predictions.csv").unlink()
    parsed = Page(report(folder))
    assert "img" not in parsed.tags
    for absent in ("figures/curves.png", "figures/test_images.png", "calibration.json"):
        assert f"{absent} is not here; delete result.json and run" in parsed.text
    assert "predictions.csv is not here" in parsed.text
    assert parsed.text.count("which reads the test split once more") == 4
    modules = {module.removesuffix(".__main__") for module, _ in cli.COMMANDS.values()}
    named = {shlex.split(code)[2] for code in parsed.codes}
    assert named <= modules
    assert {f"cxrjax.{name}" for name in ("audit", "decide", "explain", "main")} <= named
    assert "The shortcut score was not measured; python -m cxrjax.audit" in parsed.text
    (folder / "config.json").unlink()
    assert "config.json is not here" in Page(report(folder)).text


def test_audit_and_decision_are_shown_where_they_are(tmp_path):
    folder = finished_runs.make(tmp_path / "run")
    assert cli.main(["decide", "--workdir", str(folder), "--resamples", "100"]) == 0
    (folder / "audit/figures").mkdir(parents=True)
    auroc = {"value": 0.86, "low": 0.83, "high": 0.89, "n": 400}
    audit = {
        "findings": [{"kind": "borders", "text": "borders alone tell <the> class"}],
        "n": 400,
        "predictability": {"borders": {"auroc": auroc, "counts_as_finding": True}},
    }
    (folder / "audit/audit.json").write_text(json.dumps(audit))
    Image.new("L", (40, 30)).save(folder / "audit/figures/duplicates.png")
    parsed = Page(report(folder))
    assert "borders alone tell <the> class" in parsed.text
    assert "The audit of the data has 1 finding, listed" in parsed.text
    assert parsed.table("How well a few plain numbers")[1][:2] == ["borders", shown(auroc)]
    decision = json.loads((folder / "decision.json").read_text())
    assert shown(decision["corrected"]["difference"]) in parsed.text
    assert parsed.tags.count("img") == 2


@pytest.mark.parametrize(
    ("score", "says"),
    [
        (None, "was not measured"),
        ({"value": None, "low": None, "high": None, "n": 9}, "too close to chance"),
        ({"value": None, "low": None, "high": None, "n": 0}, "On no test image lungs were found"),
        ({"value": 0.42, "low": 0.3, "high": 0.5, "n": 9}, "need not hold in another hospital"),
        ({"value": 0.02, "low": -0.1, "high": 0.1, "n": 9}, "no shortcut outside the lungs"),
        ({"value": -0.4, "low": -0.5, "high": -0.3, "n": 9}, "points at the wrong classes"),
        ({"value": 0.2, "low": 0.02, "high": 0.3, "n": 9}, "do not settle"),
    ],
)
def test_what_the_shortcut_score_means(tmp_path, score, says):
    folder = finished_runs.make(tmp_path / "run")
    result = result_of(folder)
    sound = score is not None and score["high"] == 0.1
    if score is not None:
        view = {key: result["test"][key] for key in ("accuracy", "auroc")}
        told = {"score": score, "views": {"intact": view, "odd": view}}
        result["audit"]["shortcuts"] = told | ({"without": "flat_lungs"} if sound else {})
    finished_runs.change(folder / "result.json", audit=result["audit"])
    parsed = Page(report(folder))
    assert says in parsed.text
    assert ("section", "class", "sound" if sound else "doubt") in parsed.attributes
    if score is not None:
        assert [row[0] for row in parsed.table("The network on")[1:]] == ["as they are", "odd"]
        assert f"the lungs are {'of one grey' if sound else 'black'}" in parsed.text


def test_leaks_and_training_on_validation_images_are_told(tmp_path):
    folder = finished_runs.make(tmp_path / "run")
    result = result_of(folder)
    result["audit"]["leaks"]["pairs"]["train-test"] = 3
    seen = result["validation"] | {"trained_on": True}
    trained_on = ["train", "validation"]
    changes = {"audit": result["audit"], "validation": seen, "trained_on": trained_on}
    finished_runs.change(folder / "result.json", **changes)
    finished_runs.change(folder / "calibration.json", fitted_on_training_images=True)
    parsed = Page(report(folder))
    assert "3 near-duplicate pairs or patients are both in the test split and in" in parsed.text
    assert parsed.table("Value, 95")[0] == ["", "validation (images trained on)", "test"]
    assert "its probabilities are too sure" in parsed.text


def test_what_is_no_finished_run_is_refused(tmp_path, capsys):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.json").write_text(config.to_json(config.default()))
    other = tmp_path / "other"
    other.mkdir()
    for folder, says in [
        (unfinished, f"finish this one by python -m cxrjax.main --workdir {unfinished}"),
        (other, "holds no result.json; name a run that has finished."),
        (tmp_path / "none", "is not a folder"),
    ]:
        assert command.main(["--workdir", str(folder)]) == 2
        told = capsys.readouterr()
        assert says in told.err and told.err.count("\n") == 1 and not told.out
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "config.json",
        "other",
        "unfinished",
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("result.json", "{", "the results in"),
        ("result.json", "[]", "does not hold a JSON object"),
        ("result.json", '{"classes": ["a"]}', "the results in"),
        ("predictions.csv", "split,index", "the results in"),
        ("calibration.json", "[]", "calibration.json cannot be read"),
        ("calibration.json", "{}", "KeyError: 'temperature'"),
        ("calibration.json", {"operating_points": {}}, "calibration.json cannot be read (Value"),
        ("result.json", {"audit": NONE}, "cannot be read (ValueError"),
        ("config.json", "{", "config.json is not valid JSON"),
        ("figures/curves.png", "no picture", "curves.png cannot be read as a picture"),
    ],
)
def test_damaged_files_are_one_sentence_and_keep_the_old_page(
    tmp_path, capsys, name, content, says
):
    folder = finished_runs.make(tmp_path / "run")
    old = report(folder)
    (folder / "figures").mkdir()
    if isinstance(content, dict):
        content = json.dumps(json.loads((folder / name).read_text()) | content)
    (folder / name).write_text(content)
    capsys.readouterr()
    assert command.main(["--workdir", str(folder)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("cxrjax: ") and told.count("\n") == 1 and says in told
    assert (folder / "report.html").read_text(encoding="utf-8") == old


def test_a_failed_write_keeps_the_old_page(tmp_path, capsys, monkeypatch):
    folder = finished_runs.make(tmp_path / "run")
    old = report(folder)
    finished_runs.change(folder / "result.json", model="another")
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "full")))
    assert command.main(["--workdir", str(folder)]) == 2
    assert "free some room or choose another --out" in capsys.readouterr().err
    monkeypatch.undo()
    assert (folder / "report.html").read_text(encoding="utf-8") == old
    assert not list(folder.glob("*.tmp"))
    assert "another on folder" in Page(report(folder)).text


def test_where_the_page_goes(tmp_path, capsys):
    folder = finished_runs.make(tmp_path / "run")
    out = tmp_path / "new" / "page.html"
    assert command.main(["--workdir", str(folder), "--out", str(out)]) == 0
    assert out.exists() and not (folder / "report.html").exists()
    result = (folder / "result.json").read_bytes()
    assert command.main(["--workdir", str(folder), "--out", str(folder / "result.json")]) == 2
    assert "ends in .html" in capsys.readouterr().err
    assert (folder / "result.json").read_bytes() == result


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(1.1, 2, "too sure of itself"), (0.5, 0.9, "less sure than"), (0.9, 1.2, "not shown to be")],
)
def test_what_the_temperature_means(tmp_path, low, high, says):
    folder = finished_runs.make(tmp_path / "run")
    entry = {"value": (low + high) / 2, "low": low, "high": high, "n": 90}
    finished_runs.change(folder / "calibration.json", temperature=entry)
    assert f"As trained the network is {says}" in Page(report(folder)).text
