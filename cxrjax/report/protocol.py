"""The sections that say what was done, on what, and how to do it again."""

from __future__ import annotations

import json
from typing import Any

from cxrjax import config as config_lib
from cxrjax.report import elements as e
from cxrjax.report.elements import Html
from cxrjax.report.files import Found


def data(found: Found) -> Html:
    """Splits, looks at the test split, weights, configuration."""
    return e.section(
        "protocol",
        "Data and protocol",
        _splits(found),
        _looks(found),
        _facts(found),
        _config(found),
    )


def _splits(found: Found) -> Html:
    sizes = found.result.get("n") or {
        split: found.result[split]["accuracy"]["n"]
        for split in ("validation", "test")
        if split in found.result
    }
    seen = "validation" in found.result.get("trained_on", ())
    uses = {
        "train": "trained on",
        "validation": "trained on, then calibration"
        if seen
        else "choice of the epoch, calibration",
        "test": "read once training had ended" if found.tested else "not read by this run",
    }
    rows = []
    for split, n in sizes.items():
        support = found.result.get(split, {}).get("per_class", {})
        told = ", ".join(f"{name} {of['support']}" for name, of in support.items())
        rows.append([split, n, told or "-", uses.get(split, "")])
    return e.table("Splits", ["split", "images", "by class", "used for"], rows)


def _looks(found: Found) -> Html:
    own = "" if found.tested else ", not by this run"
    return e.paragraph(
        f"{str(found.looks).capitalize()}{own}. Figures of a test split are worth the less the "
        "more often it was read while choices were made."
    )


def _facts(found: Found) -> Html:
    result = found.result
    contract, parameters = result.get("input") or {}, result.get("parameters") or {}
    facts = {
        "task": result.get("task"),
        "network": result.get("model"),
        "parameters": ", ".join(f"{n:,} {kind}" for kind, n in parameters.items()),
        "input": _input(contract),
        "pretrained weights": _plain(contract.get("pretrained")),
        "started from": _plain(contract.get("start_from")),
        "split digest": result.get("split_digest"),
        "data fingerprint": result.get("data_fingerprint"),
    }
    rows = [[name, value] for name, value in facts.items() if value]
    return e.table("What it is", ["", ""], rows, "facts")


def _input(contract: dict[str, Any]) -> str:
    if "image_size" not in contract:
        return ""
    size, channels = contract["image_size"], contract["channels"]
    frame = contract.get("frame", "whole")
    films = "whole films" if frame == "whole" else frame
    return (
        f"{size} x {size} pixels, {films}, {channels} channel{'s' * (channels > 1)}, mean "
        f"{contract['mean']}, standard deviation {contract['std']}"
    )


def _plain(value: Any) -> str:
    """Text of a value of foreign JSON."""
    return value if isinstance(value, str) else json.dumps(value) if value else ""


def _config(found: Found) -> Html:
    if found.config is None:
        return e.paragraph(
            "config.json is not here; without it the run cannot be redone by its folder alone.",
            class_="missing",
        )
    ours, usual = config_lib.fields(found.config), config_lib.fields(config_lib.default())
    rows = [[field, ours[field], usual[field]] for field in ours if ours[field] != usual[field]]
    whole = e.tag("pre", config_lib.to_json(found.config))
    return e.join(
        [
            e.table(
                "Configuration: fields that are not at their default",
                ["field", "this run", "default"],
                rows,
                "facts",
            ),
            e.tag("details", e.tag("summary", "The whole configuration"), whole),
        ]
    )


def machine(found: Found) -> Html:
    """Device, versions, seconds; how to do it again."""
    result = found.result
    seconds = result.get("seconds")
    rows = [
        ["device", result.get("device") or "unknown"],
        ["training", f"{seconds} seconds" if seconds is not None else "unknown"],
        *([name, version or "unknown"] for name, version in (result.get("versions") or {}).items()),
    ]
    return e.section(
        "machine",
        "Device, versions, time",
        e.table("Where it ran", ["", ""], rows, "facts"),
        _again(found),
    )


def _again(found: Found) -> Html:
    if found.config is None:
        return Html()
    settings = found.folder / "config.json"
    folder = found.folder.resolve()  # `.` has no name
    anew = folder.with_name(f"{folder.name}-again")
    return e.paragraph(
        "To do the run again: ",
        e.command("cxrjax.main", "--config", settings, "--workdir", anew),
        ". On the same machine, with the same versions and data, it gives the same figures.",
    )
